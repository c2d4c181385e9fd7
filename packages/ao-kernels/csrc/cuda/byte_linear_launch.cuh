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
  bool early;
  cudaStream_t stream;
};

template <class Kind, bool BLOCKS>
cudaError_t launch_linear(const LinearLaunch& l) {
  using T = LinearTile<Kind, BLOCKS>;
  static_assert(T::BM == kMostOneLaunchTokens);
  constexpr auto kernel = byte_linear<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared)) return error;
  const int tiles = (l.args.product.N + T::kRows - 1) / T::kRows, at_once = l.multiprocessors * T::CTAS;
  Grid grid(l.plan.split > 1 || tiles < at_once ? tiles * l.plan.split : at_once, T::kThreads, T::kShared, l.stream);
  grid.cluster(l.plan.split);
  if (l.early) grid.early();
  return grid.start(kernel, l.codes_map, l.args);
}

}  // namespace ao::bytes
