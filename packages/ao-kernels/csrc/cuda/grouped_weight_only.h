// Weight-only linears of experts on a GPU: what is taken, how the work is cut, and the launch.
//
// Up to kFewRows rows an expert, on average, go to weight_only_small.cuh by way of grouped_small.cuh, more to weight_only_large.cuh by way of
// grouped_large.cuh (Hopper, bf16).
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "cuda/experts.h"
#include "linear.h"

namespace ao {

// The weights of experts: `one` is expert 0's, with M = T.
struct GroupedArgs {
  LinearArgs one;
  Experts experts;
  int64_t scale_bytes, bias_bytes;  // from one expert's to the next one's; 0 where all share the scales
};

namespace grouped {

bool takes_weight_only(const GroupedArgs& a, const Device& device);
cudaError_t launch_weight_only(const GroupedArgs& a, const Device& device, cudaStream_t stream);

}  // namespace grouped
}  // namespace ao
