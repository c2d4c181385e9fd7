// optimizer_step.cuh for moments of one format.
#include "cuda/optimizer_step.cuh"

namespace ao {

cudaError_t step_bits4(const StepGrid& grid, int64_t blocks, cudaStream_t stream) {
  return start<MomentFormat::bits4>(grid, blocks, stream);
}

}  // namespace ao
