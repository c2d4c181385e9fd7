#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "cuda/weight_only_call.h"
#include "tensor.h"

namespace py = pybind11;

// One declaration and one call an op; each is defined in csrc/cuda/<op>.cpp.
void register_int4_linear(py::module_& m);
void register_int8_linear(py::module_& m);
void register_intx_linear(py::module_& m);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of ao_kernels: raw addresses and sizes, no torch headers.";
  ao::bind_torch();
  m.def("device_refusal", &ao::device_refusal, py::arg("device"),
        "Why no kernel runs on this CUDA device, or an empty string.");
  m.def("weight_only_refusal", &ao::weight_only_refusal, py::arg("M"), py::arg("N"), py::arg("K"),
        py::arg("group_size"), py::arg("bits"), py::arg("zero"), py::arg("device"),
        "Why no weight-only linear of this shape runs on this CUDA device, or an empty string.");

  register_int4_linear(m);
  register_int8_linear(m);
  register_intx_linear(m);
}
