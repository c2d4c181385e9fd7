// The launch of weight_only_large.cuh for one number of groups a stage.
#pragma once
#include <atomic>

#include "cuda/weight_only_large.cuh"
#include "cuda/weight_only_large.h"

namespace ao::large {

// Where the work of a launch lies.
struct Launch {
  CUtensorMap x_map, codes_map;
  LargeArgs args;
  Plan plan;
  int multiprocessors;
  cudaStream_t stream;
};

template <class Tile, bool ZERO>
cudaError_t launch_tile(const Launch& l) {
  const auto kernel = weight_only_large<Tile, ZERO>;
  static std::atomic<uint64_t> allowed{0};  // a bit a device; setting it twice does no harm
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const uint64_t bit = uint64_t{1} << device % 64;
  if (!(allowed.load(std::memory_order_relaxed) & bit)) {
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kShared))
      return error;
    allowed.fetch_or(bit, std::memory_order_relaxed);
  }
  const int tiles = (l.args.M + Tile::BM - 1) / Tile::BM * ((l.args.N + Tile::BN - 1) / Tile::BN);
  const int at_once = l.multiprocessors * Tile::CTAS;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {Tile::SPLIT, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(Tile::SPLIT > 1 || tiles < at_once ? tiles * Tile::SPLIT : at_once);
  config.blockDim = dim3(kLargeThreads);
  config.dynamicSmemBytes = Tile::kShared;
  config.stream = l.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, l.x_map, l.codes_map, l.args);
}

template <int NS, bool ZERO>
cudaError_t launch_plan(const Launch& l) {
  // Stages fill the shared memory of a multiprocessor, or half of it.
  switch (l.plan.tokens * 16 + l.plan.split) {
    case 32 * 16 + 1: return launch_tile<LargeTile<32, 6, 1, 2, NS>, ZERO>(l);
    case 32 * 16 + 2: return launch_tile<LargeTile<32, 6, 2, 2, NS>, ZERO>(l);
    case 32 * 16 + 4: return launch_tile<LargeTile<32, 6, 4, 2, NS>, ZERO>(l);
    case 32 * 16 + 8: return launch_tile<LargeTile<32, 6, 8, 2, NS>, ZERO>(l);
    case 64 * 16 + 1: return launch_tile<LargeTile<64, 4, 1, 2, NS>, ZERO>(l);
    case 64 * 16 + 2: return launch_tile<LargeTile<64, 4, 2, 2, NS>, ZERO>(l);
    case 64 * 16 + 4: return launch_tile<LargeTile<64, 4, 4, 2, NS>, ZERO>(l);
    case 64 * 16 + 8: return launch_tile<LargeTile<64, 4, 8, 2, NS>, ZERO>(l);
    case 128 * 16 + 1: return launch_tile<LargeTile<128, 5, 1, 1, NS>, ZERO>(l);
    case 128 * 16 + 2: return launch_tile<LargeTile<128, 5, 2, 1, NS>, ZERO>(l);
    case 128 * 16 + 4: return launch_tile<LargeTile<128, 5, 4, 1, NS>, ZERO>(l);
    default: return launch_tile<LargeTile<256, 3, 1, 1, NS>, ZERO>(l);
  }
}

template <int NS>
cudaError_t launch_groups(const Launch& l) {
  if constexpr (NS > 0) {
    if (l.args.zero) return launch_plan<NS, true>(l);
  }
  return launch_plan<NS, false>(l);
}

}  // namespace ao::large
