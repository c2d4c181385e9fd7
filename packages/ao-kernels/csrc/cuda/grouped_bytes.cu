// Host side of grouped_bytes.cuh.
#include <climits>
#include <cmath>

#include "cuda/chain.h"
#include "cuda/grouped_bytes.cuh"
#include "cuda/grouped_bytes.h"
#include "cuda/tensor_map.h"

namespace ao::bytes {

extern template cudaError_t launch_grouped<Int8>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<E4m3>(const GroupedLaunch&);

namespace {

// Tokens of a tile: fewest microseconds for the tiles of an expert. Of one tile, 14336 x 4096, H200 (tuned/nvidia-h200.json); 256 tokens take
// 32, but with 256 rows an expert tiles of 128 were as fast.
int tokens_of_tile(const Experts& experts, bool float8) {
  if (forced_tile) return forced_tile;
  constexpr int kTokens[5] = {16, 32, 64, 128, 256};
  constexpr double kMicroseconds[5] = {17.7, 18.2, 19.2, 22.5, 38.0};
  const double rows = static_cast<double>(rows_of_expert(experts));
  int best = 128;
  double least = 1e300;
  for (int i = 0; i < (float8 ? 4 : 5); ++i) {
    const bool holds = rows + 2 * std::sqrt(rows) <= kTokens[i];  // nearly all of the experts
    const double us = (holds ? 1.0 : rows / kTokens[i] + 0.5) * kMicroseconds[i];
    if (us < least) least = us, best = kTokens[i];
  }
  return best;
}

}  // namespace

bool takes(const GroupedLinear& l) {
  return takes(l.one) && l.experts.E <= kMostExperts && l.experts.E * l.one.N <= INT_MAX - 256;
}

cudaError_t launch(const GroupedLinear& linear, const Device& device, cudaStream_t stream) {
  TokenArgs t = linear.one.tokens;
  t.chained = device.early_launch && is_chained(stream);
  if (const cudaError_t error = quantize_tokens(t, device.early_launch, stream)) return error;
  const Linear& one = linear.one;
  GroupedLaunch l;
  l.tokens = tokens_of_tile(linear.experts, t.float8);
  l.rows = l.tokens < 128 ? 64 : 128;
  l.experts = linear.experts;
  l.scale_bytes = linear.scale_bytes;
  l.bias_bytes = linear.bias_bytes;
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  l.args = {.x_scale = t.scale, .scale = one.scale, .bias = one.bias, .y = one.y,
            .M = static_cast<int>(t.M), .N = static_cast<int>(one.N), .K = static_cast<int>(t.K),
            .x_scale_stride = static_cast<int>(t.scale_stride), .scale_stride = static_cast<int>(one.scale_stride),
            .block_n = static_cast<int>(one.block_n), .split = 1, .scale_dtype = one.scale_dtype,
            .bias_dtype = one.bias_dtype, .y_dtype = t.x_dtype};
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, t.codes, t.K, t.M, t.K, kStageK, l.tokens, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, one.codes, t.K, linear.experts.E * one.N, t.K, kStageK, l.rows,
                  CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  return t.float8 ? launch_grouped<E4m3>(l) : launch_grouped<Int8>(l);
}

}  // namespace ao::bytes
