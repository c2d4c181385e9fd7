// A step of Adam. See ao_kernels/ops/adam_step.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "step_kernel.h"

namespace ao::AO_ISA_NAMESPACE {

void adam_step(const StepOptions& options, const StepTensor& tensor, int64_t first, int64_t last) {
  if (options.rule == StepRule::amsgrad) step_blocks<StepRule::amsgrad>(options, tensor, first, last);
  else step_blocks<StepRule::adam>(options, tensor, first, last);
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "step_run.h"

AO_BY_ISA(ao::StepKernel, adam_step)

static PyObject* adam_step(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::StepCall call;
  return call.read_adam(args, n_args) ? ao::run_step(call, args[0], ao::adam_step_for(ao::current_isa())) : ao::not_implemented();
}

void register_adam_step(pybind11::module_& m) {
  ao::add_fastcall(m, "adam_step", adam_step, "(n_threads, the arguments of the op) -> None or NotImplemented");
}

#endif
