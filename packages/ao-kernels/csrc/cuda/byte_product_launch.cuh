// The launch of byte_product.cuh for one kind of codes.
#pragma once
#include <atomic>

#include "cuda/byte_product.cuh"
#include "cuda/byte_product.h"

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
  const auto kernel = byte_product<T>;
  static std::atomic<uint64_t> allowed{0};  // a bit a device; setting it twice does no harm
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const uint64_t bit = uint64_t{1} << device % 64;
  if (!(allowed.load(std::memory_order_relaxed) & bit)) {
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kShared))
      return error;
    allowed.fetch_or(bit, std::memory_order_relaxed);
  }
  const int tiles = (l.args.M + T::BM - 1) / T::BM * ((l.args.N + T::kRows - 1) / T::kRows);
  const int at_once = l.multiprocessors * T::CTAS;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(l.args.split), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(l.args.split > 1 || tiles < at_once ? tiles * l.args.split : at_once);
  config.blockDim = dim3(T::kThreads);
  config.dynamicSmemBytes = T::kShared;
  config.stream = l.stream;
  config.attrs = attributes;
  config.numAttrs = l.early ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, l.x_map, l.codes_map, l.args);
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
