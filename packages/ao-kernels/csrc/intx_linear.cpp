// intx weight-only linear, 1 to 8 bits a code: y = x @ ((codes - zero) * scale).T + bias.
// See ao_kernels/ops/intx_linear.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "weight_only.h"

namespace ao::AO_ISA_NAMESPACE {

void intx_linear(const LinearArgs& a) {
  switch (a.bits) {
    case 1: return weight_only_linear<1>(a);
    case 2: return weight_only_linear<2>(a);
    case 3: return weight_only_linear<3>(a);
    case 4: return weight_only_linear<4>(a);
    case 5: return weight_only_linear<5>(a);
    case 6: return weight_only_linear<6>(a);
    case 7: return weight_only_linear<7>(a);
    case 8: return weight_only_linear<8>(a);
  }
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, intx_linear)

static PyObject* intx_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call;
  int64_t bits, group_size;
  if (n_args < 7 || n_args > 8 || !ao::read_int(args[5], &bits) || bits < 1 || bits > 8 ||
      !ao::read_int(args[6], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], bits, group_size,
                 ao::argument(args, n_args, 7)))
    return ao::not_implemented();
  return call.run(ao::intx_linear_for(ao::current_isa()));
}

void register_intx_linear(pybind11::module_& m) {
  ao::add_fastcall(
      m, "intx_linear", intx_linear,
      "(n_threads, x, codes, scale, zero, bits, group_size, bias=None) -> y or NotImplemented");
}

#endif
