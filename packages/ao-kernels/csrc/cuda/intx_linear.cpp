// intx weight-only linear on CUDA tensors, 1 to 8 bits a code. See ao_kernels/ops/intx_linear.py.
#include "cuda/weight_only_call.h"

static PyObject* intx_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t bits, group_size;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[5], &bits) || bits < 1 || bits > 8 ||
      !ao::read_int(args[6], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], bits, group_size,
                 ao::argument(args, n_args, 7)))
    return ao::not_implemented();
  constexpr const char* op = "intx_linear";
  switch (bits) {
    case 1: return ao::run_weight_only<1>(op, call);
    case 2: return ao::run_weight_only<2>(op, call);
    case 3: return ao::run_weight_only<3>(op, call);
    case 4: return ao::run_weight_only<4>(op, call);
    case 5: return ao::run_weight_only<5>(op, call);
    case 6: return ao::run_weight_only<6>(op, call);
    case 7: return ao::run_weight_only<7>(op, call);
    default: return ao::run_weight_only<8>(op, call);
  }
}

void register_intx_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "intx_linear", intx_linear,
                   "(0, x, codes, scale, zero, bits, group_size, bias=None) -> y or NotImplemented");
}
