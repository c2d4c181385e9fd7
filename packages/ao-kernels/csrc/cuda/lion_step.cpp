// A step of Lion on CUDA tensors. See ao_kernels/ops/lion_step.py.
#include "cuda/step_launch.h"

static PyObject* lion_step(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::StepCall call;
  call.type = ao::DeviceType::cuda;
  return call.read_lion(args, n_args) ? ao::run_step("lion_step", call) : ao::not_implemented();
}

void register_lion_step(pybind11::module_& m) {
  ao::add_fastcall(m, "lion_step", lion_step, "(0, the arguments of the op) -> None or NotImplemented");
}
