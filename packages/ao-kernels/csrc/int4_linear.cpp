// int4 weight-only linear: y = x @ ((codes - zero) * scale).T + bias. See ao_kernels/ops/int4_linear.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "weight_only.h"

namespace ao::AO_ISA_NAMESPACE {

void int4_linear(const LinearArgs& a) { weight_only_linear<4>(a); }

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, int4_linear)

static PyObject* int4_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call;
  int64_t group_size;
  if (n_args < 6 || n_args > 7 || !ao::read_int(args[5], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], 4, group_size,
                 ao::argument(args, n_args, 6)))
    return ao::not_implemented();
  return call.run(ao::int4_linear_for(ao::current_isa()));
}

void register_int4_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int4_linear", int4_linear,
                   "(n_threads, x, codes, scale, zero, group_size, bias=None) -> y or NotImplemented");
}

#endif
