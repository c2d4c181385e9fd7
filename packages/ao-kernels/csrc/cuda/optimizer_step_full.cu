// optimizer_step.cuh for moments of one format.
#include "cuda/optimizer_step.cuh"

namespace ao {

cudaError_t step_full(const StepGrid& grid, int64_t blocks, cudaStream_t stream) {
  return start<MomentFormat::full>(grid, blocks, stream);
}

}  // namespace ao
