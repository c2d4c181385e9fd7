// The launch of byte_linear.cuh for one kind of codes.
#pragma once
#include "cuda/byte_linear.cuh"
#include "cuda/byte_product.h"
#include "cuda/grid.h"

namespace ao::bytes {

struct LinearLaunch {
  CUtensorMap codes_map;
  LinearArgs args;
  Plan plan;
  int multiprocessors;
  bool share;  // tokens among the CTAs of a cluster
  bool early;
  cudaStream_t stream;
};

constexpr int kSharing = 4;  // CTAs

template <class T>
cudaError_t launch_linear_tile(const LinearLaunch& l) {
  constexpr auto kernel = byte_linear<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared)) return error;
  const int tiles = (l.args.product.N + T::kRows - 1) / T::kRows, at_once = l.multiprocessors * T::CTAS;
  const int whole = (tiles + T::SHARE - 1) / T::SHARE * T::SHARE;
  Grid grid(T::SHARE > 1 ? whole : l.plan.split > 1 || tiles < at_once ? tiles * l.plan.split : at_once, T::kThreads, T::kShared,
            l.stream);
  grid.cluster(T::SHARE > 1 ? T::SHARE : l.plan.split);
  if (l.early) grid.early();
  return grid.start(kernel, l.codes_map, l.args);
}

template <class Kind, bool BLOCKS>
cudaError_t launch_linear(const LinearLaunch& l) {
  switch (l.plan.tokens) {
    case 16: return launch_linear_tile<LinearTile<Kind, 16, 10, 7, BLOCKS>>(l);
    case 32:
      if (l.share) return launch_linear_tile<LinearTile<Kind, 32, 8, 7, BLOCKS, kSharing>>(l);
      return launch_linear_tile<LinearTile<Kind, 32, 8, 7, BLOCKS>>(l);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ao::bytes
