// int8 linear with int8 activations of a given scale on CUDA tensors. See ao_kernels/ops/int8_static_linear.py.
#include "cuda/byte_linear_call.h"

static PyObject* int8_static_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  if (n_args < 5 || n_args > 6 ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, ao::kInt8, ao::kWholeRow, ao::argument(args, n_args, 5)))
    return ao::not_implemented();
  return ao::run_bytes("int8_static_linear", call, ao::TokenScales::given, args[4]);
}

void register_int8_static_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_static_linear", int8_static_linear,
                   "(0, x, codes, scale, x_scale, bias=None) -> y or NotImplemented");
}
