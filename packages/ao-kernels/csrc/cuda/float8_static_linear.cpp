// float8 linear with float8 activations of a given scale on CUDA tensors. See ao_kernels/ops/float8_static_linear.py.
#include "cuda/byte_linear_call.h"

static PyObject* float8_static_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t block_n, block_k;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[5], &block_n) || !ao::read_int(args[6], &block_k) ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, ao::kE4m3, block_k, ao::argument(args, n_args, 7), block_n))
    return ao::not_implemented();
  const ao::LinearArgs& a = call.args;
  if (a.x_dtype == ao::DType::f32 || a.G > 1 || (a.block_n > 1 && a.block_n < a.N) || a.M > ao::bytes::kLibraryTokens)
    return ao::not_implemented();
  return ao::run_bytes("float8_static_linear", call, ao::TokenScales::given, args[4]);
}

void register_float8_static_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_static_linear", float8_static_linear,
                   "(0, x, codes, scale, x_scale, block_n, block_k, bias=None) -> y or NotImplemented");
}
