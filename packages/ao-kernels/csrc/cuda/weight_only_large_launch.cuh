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
  const int tiles = (l.args.M + Tile::BM - 1) / Tile::BM * ((l.args.end_n - l.args.first_n + Tile::BN - 1) / Tile::BN);
  const int at_once = l.multiprocessors * Tile::CTAS, split = l.args.split;
  if (split > 1 && !Tile::kSplits) return cudaErrorInvalidValue;
  Grid grid(split > 1 || tiles < at_once ? tiles * split : at_once, Tile::kThreads, Tile::kShared, l.stream);
  grid.cluster(split);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args);
}

// Stages fill the part of a multiprocessor's shared memory that a CTA has.
constexpr int stages_of(int codes, int consumers, int tokens, int ctas) {
  const int stage = 64 * consumers * stage_code_bytes(codes) + 256 * tokens;
  return (((228 << 10) / ctas - 1024) - 1024 - store_bytes(consumers, tokens)) / (stage + 16);
}

template <int CODES, int NS, bool ZERO>
struct Tiles {
  template <int CONSUMERS, int BM, int CTAS>
  static bool launch(const Launch& l, cudaError_t& error) {
    const Plan& p = l.plan;
    if (p.consumers != CONSUMERS || p.tokens != BM || p.ctas != CTAS) return false;
    error = launch_tile<LargeTile<CODES, CONSUMERS, BM, stages_of(CODES, CONSUMERS, BM, CTAS), CTAS, NS>, ZERO>(l);
    return true;
  }
};

// The tiles that make_cut() chooses from.
template <int CODES, int NS, bool ZERO>
cudaError_t launch_plan(const Launch& l) {
  using T = Tiles<CODES, NS, ZERO>;
  cudaError_t error = cudaErrorInvalidValue;  // a plan of no tile
  if constexpr (CODES == 4) {
    T::template launch<1, 32, 4>(l, error) || T::template launch<1, 64, 3>(l, error) || T::template launch<2, 64, 2>(l, error) ||
        T::template launch<2, 128, 1>(l, error) || T::template launch<3, 128, 1>(l, error) || T::template launch<2, 256, 1>(l, error);
  } else {
    if constexpr (NS == 0) {
      if (T::template launch<2, 64, 1>(l, error)) return error;
    }
    T::template launch<1, 32, 3>(l, error) || T::template launch<2, 32, 2>(l, error) || T::template launch<2, 64, 2>(l, error) ||
        T::template launch<2, 128, 1>(l, error) || T::template launch<4, 128, 1>(l, error);
  }
  return error;
}

template <int CODES, int NS>
cudaError_t launch_groups(const Launch& l) {
  if constexpr (CODES == 4 && NS > 0) {
    if (l.args.zero) return launch_plan<CODES, NS, true>(l);
  }
  return launch_plan<CODES, NS, false>(l);
}

}  // namespace ao::large
