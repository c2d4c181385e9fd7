// int8 weight-only linear: y = x @ (codes * scale).T + bias. See ao_kernels/ops/int8_linear.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "weight_only.h"

namespace ao::AO_ISA_NAMESPACE {

void int8_linear(const LinearArgs& a) { weight_only_linear<0>(a); }

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, int8_linear)

static PyObject* int8_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call;
  int64_t group_size;
  if (n_args < 5 || n_args > 6 || !ao::read_int(args[4], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, 0, group_size,
                 ao::argument(args, n_args, 5)))
    return ao::not_implemented();
  return call.run(ao::int8_linear_for(ao::current_isa()));
}

void register_int8_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_linear", int8_linear,
                   "(n_threads, x, codes, scale, group_size, bias=None) -> y or NotImplemented");
}

#endif
