#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "tensor.h"

namespace py = pybind11;

// One declaration and one call an op; each is defined in csrc/cuda/<op>.cpp.

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of ao_kernels: raw addresses and sizes, no torch headers.";
  ao::bind_torch();
  m.def("device_refusal", &ao::device_refusal, py::arg("device"),
        "Why no kernel runs on this CUDA device, or an empty string.");

}
