// float8 linear with float8 activations on CUDA tensors. See ao_kernels/ops/float8_dynamic_linear.py.
#include "cuda/byte_linear_call.h"

namespace {

// False where the kernels have no such pair of scales of activations and weights, or the op has no such activation.
bool scales_of(PyObject* activation, const ao::LinearArgs& a, ao::TokenScales* scales) {
  if (!PyUnicode_Check(activation)) return false;
  const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(activation, name) == 0; };
  const bool block = is("block"), tensor = is("tensor");
  if (!block && !tensor && !is("row")) return false;
  if (block && a.G > 1) {
    *scales = ao::TokenScales::block;
    return a.group_size == 128;
  }
  *scales = tensor ? ao::TokenScales::tensor : ao::TokenScales::row;  // a block as long as a token is a row
  return a.G == 1 && (a.block_n == 1 || a.block_n >= a.N);
}

PyObject* float8_dynamic_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t block_n, block_k;
  ao::TokenScales scales;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[4], &block_n) || !ao::read_int(args[5], &block_k) ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, ao::kE4m3, block_k, ao::argument(args, n_args, 7), block_n) ||
      call.args.x_dtype == ao::DType::f32 || !scales_of(args[6], call.args, &scales))
    return ao::not_implemented();
  if (scales != ao::TokenScales::block && call.args.M > ao::bytes::kLibraryTokens) return ao::not_implemented();
  return ao::run_bytes("float8_dynamic_linear", call, scales);
}

}  // namespace

void register_float8_dynamic_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_dynamic_linear", float8_dynamic_linear,
                   "(0, x, codes, scale, block_n, block_k, activation, bias=None) -> y or NotImplemented");
}
