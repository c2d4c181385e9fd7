// Weight-only linear of many tokens on Hopper GPUs, int4, int8 and float8: what is taken, how the work is cut, and the launch.
// The kernel is in weight_only_large.cuh; weight_only_large_<codes>.cu compile it.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "linear.h"

namespace ao::large {

// From this many tokens on, dequantizing the weight once and the library's product are faster. H200, 14336 x 4096: int4, groups of
// 128, took 692 to 722 us here and 667 so with 4096 tokens, before dequantizing took 26 us less; with 2048 it takes 333 here and 364
// so. int8 and e4m3, one scale a row, take as long with 2048 either way (369 and 372; 373 and 371). Below, tables tell
// (docs/decisions/0014, 0030).
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
