// Per-token int8 activations times int8 weights. See ao_kernels/ops/int8_dynamic_linear.py; the kernel is int8_product.
#include "int8_product.h"

#ifndef AO_ISA_NAMESPACE

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, int8_product_symmetric)

static PyObject* int8_dynamic_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  constexpr int64_t kOneGroup = INT64_MAX / 2;
  ao::LinearCall call;
  if (n_args < 4 || n_args > 5 || !call.read(args[0], args[1], args[2], args[3], Py_None, 0, kOneGroup,
                                             ao::argument(args, n_args, 4)))
    return ao::not_implemented();
  return call.run(ao::int8_product_symmetric_for(ao::current_isa()));
}

void register_int8_dynamic_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_dynamic_linear", int8_dynamic_linear,
                   "(n_threads, x, codes, scale, bias=None) -> y or NotImplemented");
}

#endif
