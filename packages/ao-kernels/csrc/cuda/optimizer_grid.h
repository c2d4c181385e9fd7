// Launches of the kernels of optimizer_step.cuh.
#pragma once
#include <cuda_runtime_api.h>

#include "optimizer_step.h"

namespace ao {

// A block of threads is one warp: whatever it decides, all of its threads do.
constexpr int kStepThreads = 32;
constexpr int kStepTile = 8 * kStepThreads;  // elements at a time
constexpr int kStepTiles = 8;
constexpr int64_t kStepChunk = int64_t{kStepTile} * kStepTiles;
constexpr int kMostStepTensors = 240;  // of one launch: its parameters take up to 32764 bytes

// The parameters of a launch travel as arguments of the kernel: there is no table on the device that would have to be written before.
struct StepGrid {
  StepOptions options;
  int count;
  const double* device_scalars;  // or null: those of the tensors
  int64_t device_scalars_stride;
  int first[kMostStepTensors];   // the first block of threads of each tensor
  StepTensor tensors[kMostStepTensors];
};
static_assert(sizeof(StepGrid) <= 32764);

// Blocks of threads that a parameter takes.
inline int64_t step_blocks(int64_t numel) { return (numel + kStepChunk - 1) / kStepChunk; }

// grid.first and the tensors are set; `blocks` in all, more than none and less than 2**31.
cudaError_t step_bits8(const StepGrid& grid, int64_t blocks, cudaStream_t stream);
cudaError_t step_bits4(const StepGrid& grid, int64_t blocks, cudaStream_t stream);
cudaError_t step_e4m3(const StepGrid& grid, int64_t blocks, cudaStream_t stream);
cudaError_t step_full(const StepGrid& grid, int64_t blocks, cudaStream_t stream);

// Whether there is a kernel for parameters and gradients of these dtypes.
inline bool steps_dtypes(DType p, DType g) {
  return (p == g && is_activation_dtype(p)) || (p == DType::bf16 && g == DType::f32) || (p == DType::f32 && g == DType::bf16);
}

}  // namespace ao
