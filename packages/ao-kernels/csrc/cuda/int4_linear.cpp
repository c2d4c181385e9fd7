// int4 weight-only linear on CUDA tensors. See ao_kernels/ops/int4_linear.py.
#include "cuda/weight_only_call.h"

static PyObject* int4_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t group_size;
  if (n_args < 6 || n_args > 7 || !ao::read_int(args[5], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], 4, group_size,
                 ao::argument(args, n_args, 6)))
    return ao::not_implemented();
  return ao::run_weight_only<4>("int4_linear", call);
}

void register_int4_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int4_linear", int4_linear,
                   "(0, x, codes, scale, zero, group_size, bias=None) -> y or NotImplemented");
}
