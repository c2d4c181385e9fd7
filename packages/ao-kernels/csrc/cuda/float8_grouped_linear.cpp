// float8 weight-only linear of experts on CUDA tensors. See ao_kernels/ops/float8_grouped_linear.py.
#include "cuda/grouped_call.h"

static PyObject* float8_grouped_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::GroupedCall call;
  int64_t block_n, block_k;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[4], &block_n) || !ao::read_int(args[5], &block_k) ||
      !call.read(args[1], args[2], args[3], Py_None, ao::kE4m3, block_k, args[6], ao::argument(args, n_args, 7), block_n))
    return ao::not_implemented();
  return ao::run_grouped_weight_only("float8_grouped_linear", call);
}

void register_float8_grouped_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_grouped_linear", float8_grouped_linear,
                   "(0, x, codes, scale, block_n, block_k, offsets, bias=None) -> y or NotImplemented");
}
