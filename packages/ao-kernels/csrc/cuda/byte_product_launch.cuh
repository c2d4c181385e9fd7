// The launch of byte_product.cuh for one kind of codes.
#pragma once
#include "cuda/byte_product.cuh"
#include "cuda/byte_product.h"
#include "cuda/grid.h"

namespace ao::bytes {

struct Launch {
  CUtensorMap x_map, codes_map;
  ProductArgs args;
  Plan plan;
  int multiprocessors;
  bool early;
  cudaStream_t stream;
};

template <class T>
cudaError_t launch_tile(const Launch& l) {
  constexpr auto kernel = byte_product<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared)) return error;
  const int tiles = (l.args.M + T::BM - 1) / T::BM * ((l.args.N + T::kRows - 1) / T::kRows);
  const int at_once = l.multiprocessors * T::CTAS;
  Grid grid(l.args.split > 1 || tiles < at_once ? tiles * l.args.split : at_once, T::kThreads, T::kShared, l.stream);
  grid.cluster(l.args.split);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args);
}

// Stages fill the shared memory of a multiprocessor, or half of it.
template <class Kind, bool BLOCKS>
cudaError_t launch_plan(const Launch& l) {
  switch (l.plan.tokens) {  // up to 64 go with 64 output features, more with 128
    case 16: return launch_tile<Tile<Kind, 1, 16, 10, 2, BLOCKS>>(l);
    case 32: return launch_tile<Tile<Kind, 1, 32, 8, 2, BLOCKS>>(l);
    case 64: return launch_tile<Tile<Kind, 1, 64, 6, 2, BLOCKS>>(l);
    case 128: return launch_tile<Tile<Kind, 2, 128, 6, 1, BLOCKS>>(l);
    default:
      if constexpr (std::is_same_v<typename Kind::Sum, float>) return cudaErrorInvalidValue;
      else return launch_tile<Tile<Kind, 2, 256, 4, 1, BLOCKS>>(l);
  }
}

}  // namespace ao::bytes
