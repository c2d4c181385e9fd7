// Products of float8 operands of experts on CUDA tensors. See ao_kernels/ops/float8_grouped_wgrad.py.
#include "cuda/float8_products.h"

static PyObject* float8_grouped_wgrad(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  return ao::run_product("float8_grouped_wgrad", args, n_args, true);
}

void register_float8_grouped_wgrad(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_grouped_wgrad", float8_grouped_wgrad,
                   "(0, a, a_scale, b, b_scale, ends, out_dtype=None, fast_accum=False) -> y or NotImplemented");
}
