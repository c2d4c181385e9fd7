// The launch of weight_only_large.cuh for one kind of codes and number of groups a stage.
#pragma once
#include "cuda/grid.h"
#include "cuda/weight_only_large.cuh"
#include "cuda/weight_only_large.h"

namespace ao::large {

// Where the work of a launch lies.
struct Launch {
  CUtensorMap x_map, codes_map;
  LargeArgs args;
  Plan plan;
  int multiprocessors;
  bool early;  // it may start before the grids in front of it have ended (programmatic dependent launch)
  cudaStream_t stream;
};

template <class Tile, bool ZERO>
cudaError_t launch_tile(const Launch& l) {
  constexpr auto kernel = weight_only_large<Tile, ZERO>;
  if (const cudaError_t error = allow_shared_memory<kernel>(Tile::kShared)) return error;
  const int tiles = (l.args.M + Tile::BM - 1) / Tile::BM * ((l.args.N + Tile::BN - 1) / Tile::BN);
  const int at_once = l.multiprocessors * Tile::CTAS, split = l.args.split;
  if (split > 1 && !Tile::kSplits) return cudaErrorInvalidValue;
  Grid grid(split > 1 || tiles < at_once ? tiles * split : at_once, Tile::kThreads, Tile::kShared, l.stream);
  grid.cluster(split);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args);
}

// Stages fill the shared memory of a multiprocessor (128 tokens or more), or half of it.
constexpr int stages_of(int codes, int tokens) {
  if (codes == 4) return tokens == 32 ? 6 : tokens == 64 ? 4 : tokens == 128 ? 5 : 3;
  return tokens == 32 ? 4 : tokens == 64 ? 3 : tokens == 128 ? 4 : 2;
}

template <int CODES, int NS, bool ZERO, int BM, int SPLIT>
cudaError_t launch_sizes(const Launch& l) {
  return launch_tile<LargeTile<CODES, BM, stages_of(CODES, BM), SPLIT, BM < 128 ? 2 : 1, NS>, ZERO>(l);
}

template <int CODES, int NS, bool ZERO>
cudaError_t launch_plan(const Launch& l) {
  if constexpr (CODES != 4 && NS == 0) {
    if (l.plan.alone) return launch_tile<LargeTile<CODES, 64, 6, 1, 1, NS>, ZERO>(l);
  }
  switch (l.plan.tokens * 16 + l.plan.split) {
    case 32 * 16 + 1: return launch_sizes<CODES, NS, ZERO, 32, 1>(l);
    case 32 * 16 + 2: return launch_sizes<CODES, NS, ZERO, 32, 2>(l);
    case 32 * 16 + 4: return launch_sizes<CODES, NS, ZERO, 32, 4>(l);
    case 32 * 16 + 8: return launch_sizes<CODES, NS, ZERO, 32, 8>(l);
    case 64 * 16 + 1: return launch_sizes<CODES, NS, ZERO, 64, 1>(l);
    case 64 * 16 + 2: return launch_sizes<CODES, NS, ZERO, 64, 2>(l);
    case 64 * 16 + 4: return launch_sizes<CODES, NS, ZERO, 64, 4>(l);
    case 64 * 16 + 8: return launch_sizes<CODES, NS, ZERO, 64, 8>(l);
    case 128 * 16 + 1: return launch_sizes<CODES, NS, ZERO, 128, 1>(l);
    case 128 * 16 + 2: return launch_sizes<CODES, NS, ZERO, 128, 2>(l);
    case 128 * 16 + 4: return launch_sizes<CODES, NS, ZERO, 128, 4>(l);
    default: return launch_sizes<CODES, NS, ZERO, 256, 1>(l);
  }
}

template <int CODES, int NS>
cudaError_t launch_groups(const Launch& l) {
  if constexpr (CODES == 4 && NS > 0) {
    if (l.args.zero) return launch_plan<CODES, NS, true>(l);
  }
  return launch_plan<CODES, NS, false>(l);
}

}  // namespace ao::large
