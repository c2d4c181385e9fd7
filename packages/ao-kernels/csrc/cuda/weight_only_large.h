// Weight-only linear of many tokens on Hopper GPUs, int4, int8 and float8: what is taken, how the work is cut, and the launch.
// The kernel is in weight_only_large.cuh; weight_only_large_<codes>.cu compile it.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "linear.h"

namespace ao::large {

// From this many tokens on, dequantizing the weight once and the library's product are faster. H200, 14336 x 4096:
// int4, groups of 128: 4096 tokens took 692 to 722 us here and 667 so, in runs of their own.
// e4m3, one scale a row: 2048 tokens took 319 us here and 352 so, 4096 took 650 to 707 here and 690 so. int8: 1024 took 181
// here and 194 so. Below, tables tell (docs/decisions/0014); int4 with 2048 to 4095 tokens was not measured here.
constexpr int64_t kLibraryTokens = 4096;

// A tile is 64 * consumers output features by `tokens`; `ctas` of its CTAs fit into a multiprocessor; `split` CTAs share a tile.
struct Plan {
  int consumers, tokens, ctas, split;
};

// Output features up to first_rows are one grid, the others, if any, a second one.
struct Cut {
  Plan first, second;
  int64_t first_rows;
};

Cut make_cut(const LinearArgs& a, const Device& device);

// Why no kernel of many tokens runs on this device, or "".
const char* device_refusal(const Device& device);

// Whether the kernel takes these arguments, more than a few tokens; ao_kernels/cuda/weight.py says why not in words.
bool takes(const LinearArgs& a, const Device& device);

// For arguments that are taken.
cudaError_t launch(const LinearArgs& a, const Device& device, cudaStream_t stream);

}  // namespace ao::large
