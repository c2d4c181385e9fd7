// A step of Lion. See ao_kernels/ops/lion_step.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "step_kernel.h"

namespace ao::AO_ISA_NAMESPACE {

void lion_step(const StepOptions& options, const StepTensor& tensor, int64_t first, int64_t last) {
  step_blocks<StepRule::lion>(options, tensor, first, last);
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "step_run.h"

AO_BY_ISA(ao::StepKernel, lion_step)

static PyObject* lion_step(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::StepCall call;
  return call.read_lion(args, n_args) ? ao::run_step(call, args[0], ao::lion_step_for(ao::current_isa())) : ao::not_implemented();
}

void register_lion_step(pybind11::module_& m) {
  ao::add_fastcall(m, "lion_step", lion_step, "(n_threads, the arguments of the op) -> None or NotImplemented");
}

#endif
