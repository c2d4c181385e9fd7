// Per-token int8 activations times weights of 1 to 8 bits. See ao_kernels/ops/int8_dynamic_intx_linear.py; the kernel is
// int8_product.
#include "int8_product.h"

#ifndef AO_ISA_NAMESPACE

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, int8_product_asymmetric)

static PyObject* int8_dynamic_intx_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call;
  int64_t bits, group_size;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[5], &bits) || bits < 1 || bits > 8 ||
      !ao::read_int(args[6], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], bits, group_size,
                 ao::argument(args, n_args, 7)))
    return ao::not_implemented();
  return call.run(ao::int8_product_asymmetric_for(ao::current_isa()));
}

void register_int8_dynamic_intx_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_dynamic_intx_linear", int8_dynamic_intx_linear,
                   "(n_threads, x, codes, scale, zero, bits, group_size, bias=None) -> y or NotImplemented");
}

#endif
