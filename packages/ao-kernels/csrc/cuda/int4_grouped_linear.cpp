// int4 weight-only linear of experts on CUDA tensors. See ao_kernels/ops/int4_grouped_linear.py.
#include "cuda/grouped_call.h"

static PyObject* int4_grouped_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::GroupedCall call;
  int64_t group_size;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[5], &group_size) ||
      !call.read(args[1], args[2], args[3], args[4], 4, group_size, args[6], ao::argument(args, n_args, 7)))
    return ao::not_implemented();
  return ao::run_grouped_weight_only("int4_grouped_linear", call);
}

void register_int4_grouped_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int4_grouped_linear", int4_grouped_linear,
                   "(0, x, codes, scale, zero, group_size, offsets, bias=None) -> y or NotImplemented");
}
