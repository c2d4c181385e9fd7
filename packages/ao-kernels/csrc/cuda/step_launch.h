// Starts a step on torch's current stream.
#pragma once
#include "cuda/device.h"
#include "cuda/optimizer_grid.h"
#include "step_call.h"

namespace ao {

// None, NotImplemented where no kernel takes the call, or nullptr with a Python error.
inline PyObject* run_step(const char* op, const StepCall& call) {
  const StepOptions& o = call.options;
  if (!steps_dtypes(o.p_dtype, o.g_dtype) || o.n > 256 || (o.n & (o.n - 1)) || !device(call.device)->usable) return not_implemented();
  using Launch = cudaError_t(const StepGrid&, int64_t, cudaStream_t);
  Launch* const launches[] = {step_bits8, step_bits4, step_e4m3, step_full};
  void* stream;
  CurrentDevice current(call.device);
  if (!current_stream(call.device, &stream)) return nullptr;
  StepGrid grid;
  grid.options = o;
  size_t next = 0;
  while (next < call.tensors.size()) {
    int64_t blocks = 0;
    grid.count = 0;
    // Rows of scalars on the device follow those of the tensors only where none was left out for having no elements.
    const int row = call.rows[next];
    grid.device_scalars = call.device_scalars ? call.device_scalars + row * call.scalars_stride : nullptr;
    grid.device_scalars_stride = call.scalars_stride;
    while (next < call.tensors.size() && grid.count < kMostStepTensors && call.rows[next] == row + grid.count) {
      const int64_t more = step_blocks(call.tensors[next].numel);
      if (blocks + more >= int64_t{1} << 31) break;
      grid.first[grid.count] = static_cast<int>(blocks);
      grid.tensors[grid.count++] = call.tensors[next++];
      blocks += more;
    }
    if (!grid.count) return not_implemented();  // a parameter of 17e12 elements
    if (!launched(op, launches[static_cast<int>(o.format)](grid, blocks, static_cast<cudaStream_t>(stream)))) return nullptr;
  }
  Py_RETURN_NONE;
}

}  // namespace ao
