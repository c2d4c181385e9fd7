// Products of float8 operands of experts on CUDA tensors. See ao_kernels/ops/float8_grouped_matmul.py.
#include "cuda/float8_products.h"

static PyObject* float8_grouped_matmul(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  return ao::run_product("float8_grouped_matmul", args, n_args, false);
}

void register_float8_grouped_matmul(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_grouped_matmul", float8_grouped_matmul,
                   "(0, a, a_scale, b, b_scale, offsets, out_dtype=None, fast_accum=False) -> y or NotImplemented");
}
