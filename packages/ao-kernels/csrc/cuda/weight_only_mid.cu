// Host side of weight_only_mid.cuh.
#include "cuda/weight_only_mid.h"

#include "cuda/grid.h"
#include "cuda/tensor_map.h"
#include "cuda/weight_only_large.h"
#include "cuda/weight_only_mid.cuh"

namespace ao::mid {
namespace {

using large::MidTile;
using Tile16 = MidTile<2, 8, 1, 2, 2>;
using Tile32 = MidTile<2, 2, 2, 4, 4>;

// CTAs that share K. Rules fitted to an H200: 4096 x 4096, 14336 x 4096, 4096 x 14336 and 6144 x 4096 with 16 and 32 tokens.
template <class T>
int split_of(const LinearArgs& a, const Device& device) {
  const int64_t tiles = (a.N + T::BN - 1) / T::BN, blocks = (a.K + large::kStageK - 1) / large::kStageK;
  const int64_t one_each = device.multiprocessors, at_once = one_each * T::CTAS;
  int split = 1;
  const auto may_double = [&] {
    const int64_t units = 2 * split * tiles;
    if (T::CTAS == 2 && units <= one_each) return blocks >= 8 * split;  // a CTA for every multiprocessor, stages or not
    return units <= at_once && blocks >= (T::CTAS == 2 ? 16 : 28) * split;
  };
  while (split < 8 && may_double()) split *= 2;
  return split;
}

template <class T>
cudaError_t launch_tile(const LinearArgs& a, const Device& device, cudaStream_t stream) {
  constexpr auto kernel = large::weight_only_mid<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared)) return error;
  const int split = split_of<T>(a, device);
  const int64_t tiles = (a.N + T::BN - 1) / T::BN * ((a.M + T::BM - 1) / T::BM);
  const large::LargeArgs args{.scale = a.scale, .zero = nullptr, .bias = a.bias, .y = static_cast<__nv_bfloat16*>(a.y),
                              .M = static_cast<int>(a.M), .N = static_cast<int>(a.N), .K = static_cast<int>(a.K),
                              .G = static_cast<int>(a.G), .scale_stride = static_cast<int>(a.scale_stride),
                              .group_size = static_cast<int>(a.group_size), .block_n = 1, .split = split, .scale_dtype = a.scale_dtype,
                              .bias_dtype = a.bias_dtype, .chained = device.early_launch && is_chained(stream)};
  CUtensorMap x_map, codes_map;
  if (!encode_quarters(&x_map, a.x, a.K, a.M, 2 * a.x_stride, T::BM) ||
      !encode_map(&codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, a.codes, a.row_bytes, a.N, a.row_bytes, 64, T::BN, CU_TENSOR_MAP_SWIZZLE_64B))
    return cudaErrorInvalidValue;
  Grid grid(static_cast<unsigned>(tiles * split), T::kThreads, T::kShared, stream);
  grid.cluster(split);
  if (device.early_launch) grid.early();
  return grid.start(kernel, x_map, codes_map, args);
}

}  // namespace

bool takes(const LinearArgs& a, const Device& device) {
  return is_worth_it(a.M) && a.bits == 4 && !a.zero && a.group_size < a.K &&
         a.group_size % large::kStageK == 0 && large::takes(a, device);
}

cudaError_t launch(const LinearArgs& a, const Device& device, cudaStream_t stream) {
  return a.M <= 16 ? launch_tile<Tile16>(a, device, stream) : launch_tile<Tile32>(a, device, stream);
}

}  // namespace ao::mid
