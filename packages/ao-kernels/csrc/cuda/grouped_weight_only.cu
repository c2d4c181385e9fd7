// Host side of grouped_small.cuh and grouped_large.cuh.
#include "cuda/grouped_weight_only.h"

#include <climits>
#include <cmath>

#include "cuda/grouped_large.cuh"
#include "cuda/grouped_small.h"
#include "cuda/tensor_map.h"
#include "cuda/weight_only_large.h"

namespace ao {

namespace small {
extern template cudaError_t launch_grouped<4>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kInt8>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kE4m3>(const GroupedLaunch&);
}  // namespace small

namespace large {
extern template cudaError_t launch_grouped<4, 0>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<4, 1>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<4, 2>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<4, 4>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kInt8, 0>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kInt8, 1>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kE4m3, 0>(const GroupedLaunch&);
extern template cudaError_t launch_grouped<kE4m3, 1>(const GroupedLaunch&);
}  // namespace large

namespace grouped {
namespace {

constexpr int64_t kNarrowRows = 5;  // up to which tiles of 8 tokens rarely do not hold an expert's

// Rows of an expert, on average, up to which the kernel of few tokens is the faster one. H200, Mixtral's and Qwen3's experts: with 4 rows int4
// takes 209, 106, 88 and 48 us there and 242, 123, 116 and 71 in tiles of 32 tokens, float8 266, 143, 117, 63 and 229, 120, 109, 66.
int64_t few_rows(int bits) { return bits == 4 ? 8 : 3; }

bool is_few(const GroupedArgs& a) {
  if (forced_tile) return forced_tile <= 16;
  return rows_of_expert(a.experts) <= few_rows(a.one.bits);
}

small::Shape few_shape(const GroupedArgs& a) {
  const int64_t M = forced_tile ? forced_tile : rows_of_expert(a.experts) <= kNarrowRows ? 8 : 16;
  return {M, a.one.N, a.one.K, a.one.group_size, a.one.bits > 0 ? a.one.bits : 8, a.one.zero != nullptr};
}

// Blocks of one tile of tokens have their share of the device.
small::Plan few_plan(const small::Shape& shape, const GroupedArgs& a, const Device& device) {
  struct Entry {
    small::Shape shape{};
    int64_t tiles = 0;
    int shared_bytes = 0;
    small::Plan plan;
  };
  static thread_local Entry entries[64];
  const int64_t used = a.experts.T < a.experts.E ? a.experts.T : a.experts.E;
  const int64_t tiles = (rows_of_expert(a.experts) + shape.M - 1) / shape.M * used;
  const uint64_t hash = static_cast<uint64_t>(shape.M * 31 + shape.N * 7 + shape.K * 3 + tiles * 13 + shape.unit_bytes) * 0x9e3779b97f4a7c15;
  Entry& entry = entries[hash >> 58];
  if (entry.tiles != tiles || entry.shared_bytes != device.shared_bytes || !(entry.shape == shape)) {
    Device share = device;
    share.multiprocessors = static_cast<int>(device.multiprocessors / tiles);
    if (share.multiprocessors < 1) share.multiprocessors = 1;
    share.shared_bytes -= 1024;
    entry = {shape, tiles, device.shared_bytes, small::make_plan(shape, share)};
  }
  return entry.plan;
}

// Tokens of a tile: the least work for the tiles of an expert. Relative times of a tile of so many tokens, fitted to Mixtral's and Qwen3's
// experts with 16 to 1024 rows on an H200 (benchmarks/results/tune_grouped-nvidia-h200.txt).
int large_tokens(const GroupedArgs& a) {
  if (forced_tile) return forced_tile;
  constexpr int kTokens[4] = {32, 64, 128, 256};
  constexpr double kInt4[4] = {1.0, 1.15, 1.64, 2.87}, kByte[4] = {1.0, 1.11, 1.63, 2.65};
  const double rows = static_cast<double>(rows_of_expert(a.experts));
  int best = 256;
  double least = 1e300;
  for (int i = 0; i < 4; ++i) {
    const bool holds = rows + 2 * std::sqrt(rows) <= kTokens[i];  // nearly all of the experts
    const double work = (holds ? 1.0 : rows / kTokens[i] + 0.5) * (a.one.bits == 4 ? kInt4 : kByte)[i];
    if (work < least) least = work, best = kTokens[i];
  }
  return best;
}

bool takes_large(const GroupedArgs& a, const Device& device) {
  LinearArgs one = a.one;
  one.M = 17;  // any number of rows is taken here
  if (one.bits != 4 && one.group_size < one.K && one.group_size % large::kStageK) return false;
  return large::takes(one, device) && a.experts.E * one.N <= INT_MAX - 256;
}

cudaError_t launch_few(const GroupedArgs& a, const Device& device, cudaStream_t stream) {
  const small::Shape shape = few_shape(a);
  small::GroupedLaunch l{.one = a.one, .experts = a.experts, .strides = {a.scale_bytes, a.bias_bytes},
                         .plan = few_plan(shape, a, device), .shared_limit = device.shared_bytes - 1024, .stream = stream};
  l.one.M = shape.M;
  switch (a.one.bits) {
    case kInt8: return small::launch_grouped<kInt8>(l);
    case kE4m3: return small::launch_grouped<kE4m3>(l);
    default: return small::launch_grouped<4>(l);
  }
}

cudaError_t launch_many(const GroupedArgs& grouped, const Device& device, cudaStream_t stream) {
  const LinearArgs& a = grouped.one;
  large::GroupedLaunch l{.experts = grouped.experts, .scale_bytes = grouped.scale_bytes, .bias_bytes = grouped.bias_bytes,
                         .tokens = large_tokens(grouped), .multiprocessors = device.multiprocessors,
                         .shared_bytes = device.shared_bytes, .early = device.early_launch, .stream = stream};
  if (l.tokens == 256 && grouped.experts.E > 256) l.tokens = 128;  // the table of experts needs room
  l.args = {.scale = a.scale, .zero = a.zero, .bias = a.bias, .y = static_cast<__nv_bfloat16*>(a.y),
            .M = static_cast<int>(a.M), .N = static_cast<int>(a.N), .K = static_cast<int>(a.K), .G = static_cast<int>(a.G),
            .scale_stride = static_cast<int>(a.scale_stride), .group_size = static_cast<int>(a.group_size),
            .block_n = static_cast<int>(a.block_n), .split = 1, .scale_dtype = a.scale_dtype,
            .bias_dtype = a.bias_dtype, .chained = false};
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, a.x, a.K, a.M, 2 * a.x_stride, 64, l.tokens, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, a.codes, a.row_bytes, grouped.experts.E * a.N, a.row_bytes,
                  large::stage_code_bytes(a.bits), 128, a.bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  const bool row = a.G == 1, stages = a.group_size % large::kStageK == 0;  // what a group spans
  if (a.bits == kInt8) return row ? large::launch_grouped<kInt8, 0>(l) : large::launch_grouped<kInt8, 1>(l);
  if (a.bits == kE4m3) return row ? large::launch_grouped<kE4m3, 0>(l) : large::launch_grouped<kE4m3, 1>(l);
  if (row) return large::launch_grouped<4, 0>(l);
  if (stages) return large::launch_grouped<4, 1>(l);
  return a.group_size == 64 ? large::launch_grouped<4, 2>(l) : large::launch_grouped<4, 4>(l);
}

}  // namespace

bool takes_weight_only(const GroupedArgs& a, const Device& device) {
  const LinearArgs& one = a.one;
  if (one.x_dtype != DType::bf16 || a.experts.E > kMostExperts || a.experts.T > INT_MAX / 2) return false;
  if (one.bits != 4 && one.bits != kInt8 && one.bits != kE4m3) return false;
  if (!is_few(a)) return takes_large(a, device);
  const small::Shape shape = few_shape(a);
  if (one.bits != 4 && !shape.wide()) return false;
  return most_tiles(a.experts, static_cast<int>(shape.M)) <= 65535 && small::takes(shape, device) && small::takes_memory(one);
}

cudaError_t launch_weight_only(const GroupedArgs& a, const Device& device, cudaStream_t stream) {
  return is_few(a) ? launch_few(a, device, stream) : launch_many(a, device, stream);
}

}  // namespace grouped
}  // namespace ao
