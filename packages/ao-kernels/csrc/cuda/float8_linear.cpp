// float8 weight-only linear on CUDA tensors. See ao_kernels/ops/float8_linear.py.
#include "cuda/weight_only_call.h"

static PyObject* float8_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t block_n, block_k;
  if (n_args < 6 || n_args > 7 || !ao::read_int(args[4], &block_n) || !ao::read_int(args[5], &block_k))
    return ao::not_implemented();
  const auto read = [&](int kind) {
    return call.read(args[0], args[1], args[2], args[3], Py_None, kind, block_k, ao::argument(args, n_args, 6), block_n);
  };
  constexpr const char* op = "float8_linear";
  if (read(ao::kE4m3)) return ao::run_weight_only<ao::kE4m3>(op, call);
  if (read(ao::kE5m2)) return ao::run_weight_only<ao::kE5m2>(op, call);
  return ao::not_implemented();
}

void register_float8_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_linear", float8_linear,
                   "(0, x, codes, scale, block_n, block_k, bias=None) -> y or NotImplemented");
}
