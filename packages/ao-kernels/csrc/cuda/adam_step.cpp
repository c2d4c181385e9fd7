// A step of Adam on CUDA tensors. See ao_kernels/ops/adam_step.py.
#include "cuda/step_launch.h"

static PyObject* adam_step(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::StepCall call;
  call.type = ao::DeviceType::cuda;
  return call.read_adam(args, n_args) ? ao::run_step("adam_step", call) : ao::not_implemented();
}

void register_adam_step(pybind11::module_& m) {
  ao::add_fastcall(m, "adam_step", adam_step, "(0, the arguments of the op) -> None or NotImplemented");
}
