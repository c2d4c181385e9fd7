// Weight-only int4 linear of some tens of tokens on Hopper GPUs: what is taken, and the launch. The kernel is in weight_only_mid.cuh.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "linear.h"

namespace ao::mid {

// 16 or 32. With fewer tokens, weight_only_small is faster, with more weight_only_large. H200, this kernel and the other, us: 4096 x 4096,
// 8 tokens 7.8 and 6.5, 16 tokens 8.0 and 9.9, 32 tokens 10.2 and 11.6. 17 tokens of 14336 x 4096 took 41.9, of 6144 x 4096 17.6, where 32 take
// 21.4 and 12.8; why was not found, so that numbers in between, of which no other was measured, are left to weight_only_large.
constexpr bool is_worth_it(int64_t tokens) { return tokens == 16 || tokens == 32; }

// Of the arguments that weight_only_large takes, whatever the number of tokens.
bool takes(const LinearArgs& a, const Device& device);

// For arguments that are taken.
cudaError_t launch(const LinearArgs& a, const Device& device, cudaStream_t stream);

}  // namespace ao::mid
