// int8 linear of experts with int8 activations on CUDA tensors. See ao_kernels/ops/int8_dynamic_grouped_linear.py.
#include "cuda/grouped_call.h"

static PyObject* int8_dynamic_grouped_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::GroupedCall call;
  if (n_args < 5 || n_args > 6 || !call.read(args[1], args[2], args[3], Py_None, ao::kInt8, ao::kWholeRow, args[4], ao::argument(args, n_args, 5)))
    return ao::not_implemented();
  return ao::run_grouped_bytes("int8_dynamic_grouped_linear", call);
}

void register_int8_dynamic_grouped_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_dynamic_grouped_linear", int8_dynamic_grouped_linear,
                   "(0, x, codes, scale, offsets, bias=None) -> y or NotImplemented");
}
