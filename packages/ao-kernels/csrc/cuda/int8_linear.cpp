// int8 weight-only linear on CUDA tensors. See ao_kernels/ops/int8_linear.py.
#include "cuda/weight_only_call.h"

static PyObject* int8_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t group_size;
  if (n_args < 5 || n_args > 6 || !ao::read_int(args[4], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, ao::kInt8, group_size,
                 ao::argument(args, n_args, 5)))
    return ao::not_implemented();
  return ao::run_weight_only<ao::kInt8>("int8_linear", call);
}

void register_int8_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_linear", int8_linear,
                   "(0, x, codes, scale, group_size, bias=None) -> y or NotImplemented");
}
