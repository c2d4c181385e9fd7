// Host side of weight_only_large.cuh.
#include <climits>

#include "cuda/tensor_map.h"
#include "cuda/weight_only_large_launch.cuh"
#include "cuda/weight_only_mid.h"

namespace ao::large {

extern template cudaError_t launch_groups<4, 0>(const Launch&);
extern template cudaError_t launch_groups<4, 1>(const Launch&);
extern template cudaError_t launch_groups<4, 2>(const Launch&);
extern template cudaError_t launch_groups<4, 4>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 0>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 1>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 4>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 0>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 1>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 4>(const Launch&);
extern template cudaError_t launch_groups<kE5m2, 0>(const Launch&);
extern template cudaError_t launch_groups<kE5m2, 1>(const Launch&);

namespace {

// Microseconds of a stage of a tile, fitted to an H200: 4096 x 4096, 14336 x 4096, 4096 x 14336 and 6144 x 4096 with 128 to 1024 tokens.
// That of 64 tokens is for one CTA of a multiprocessor; two take kShared times as long, together.
struct TileCost {
  int consumers, tokens, ctas;
  double stage;
};
constexpr TileCost kInt4Costs[] = {{2, 128, 1, 0.85}, {3, 128, 1, 1.12}, {2, 256, 1, 1.28}};
constexpr TileCost kByteCosts[] = {{2, 64, 2, 0.66}, {2, 128, 1, 0.84}, {4, 128, 1, 1.38}};
constexpr double kShared = 1.4;
constexpr double kPartsCost = 2.5;  // to add up the parts of 128 by 128 sums
constexpr double kGridCost = 3;     // of a second grid: a guess
constexpr double kLeastGain = 0.92;  // two grids against one: those that were measured were to take 0.87 to 0.90 of its time

int64_t tiles_of(const LinearArgs& a, int consumers, int tokens) {
  return (a.N + 64 * consumers - 1) / (64 * consumers) * ((a.M + tokens - 1) / tokens);
}

// Multiprocessors that clusters of so many CTAs can fill: they lie within groups of multiprocessors and leave some over. A guess on the
// safe side, as in weight_only_small.cpp. 4096 x 4096, 128 tokens: 128 CTAs in clusters of 4 took more than 20.8 us, 88 15.8.
int64_t places_of(const Device& device, int split) { return split > 2 ? device.multiprocessors * 2 / 3 : device.multiprocessors; }

double cost_of(const Device& device, const TileCost& tile, int64_t units, int split, int64_t blocks) {
  const int64_t places = places_of(device, split);
  const bool shared = tile.ctas > 1 && units > places;
  const int64_t at_once = places * (shared ? tile.ctas : 1), waves = (units + at_once - 1) / at_once;
  const double parts = split > 1 ? kPartsCost * tile.consumers * tile.tokens / 256 : 0;
  return static_cast<double>(waves * ((blocks + split - 1) / split)) * tile.stage * (shared ? kShared : 1) + parts;
}

struct Costed {
  Plan plan;
  double cost;
};

// K is split only where all CTAs find a place at once.
template <size_t N>
Costed cheapest_plan(const LinearArgs& a, const Device& device, const TileCost (&tiles)[N], int64_t blocks) {
  Costed best{};
  for (const TileCost& tile : tiles)
    for (int split = 1; split <= 8; split *= 2) {
      const int64_t units = tiles_of(a, tile.consumers, tile.tokens) * split;
      if (split > 1 && (blocks < 8 * split || units > places_of(device, split) * tile.ctas)) break;
      const double cost = cost_of(device, tile, units, split, blocks);
      if (!best.plan.split || cost < best.cost) best = {{tile.consumers, tile.tokens, tile.ctas, split}, cost};
    }
  return best;
}

// A last wave that is not full leaves multiprocessors idle: its output features may be a second grid, whose tiles share K.
// 14336 x 4096 with 1024 tokens are 448 tiles of 256 by 128, 3.4 waves of 132: three, and 56 tiles of two CTAs each.
// Not int4, which was to gain as much and gained nothing (docs/decisions/0030).
template <size_t N>
Cut cheapest_cut(const LinearArgs& a, const Device& device, const TileCost (&tiles)[N], int64_t blocks) {
  const Costed one = cheapest_plan(a, device, tiles, blocks);
  Cut best{.first = one.plan, .second = {}, .first_rows = a.N};
  double best_cost = one.cost * kLeastGain;
  for (const TileCost& tile : tiles) {
    const int64_t waves = tiles_of(a, tile.consumers, tile.tokens) / device.multiprocessors, tiles_m = (a.M + tile.tokens - 1) / tile.tokens;
    const int64_t rows = waves * device.multiprocessors / tiles_m * 64 * tile.consumers;
    if (tile.ctas > 1 || rows == 0 || rows >= a.N) continue;
    LinearArgs rest = a;
    rest.N -= rows;
    const Costed second = cheapest_plan(rest, device, tiles, blocks);
    const double cost = static_cast<double>(waves * blocks) * tile.stage + kGridCost + second.cost;
    if (cost < best_cost) best = {{tile.consumers, tile.tokens, 1, 1}, second.plan, rows}, best_cost = cost;
  }
  return best;
}

}  // namespace

// Up to 64 tokens rules, beyond costs.
Cut make_cut(const LinearArgs& a, const Device& device) {
  const int64_t blocks = (a.K + kStageK - 1) / kStageK;
  const bool int4 = a.bits == 4, narrow = 2 * tiles_of(a, 1, 1 << 30) <= device.multiprocessors;
  if (a.M > 64) return int4 ? Cut{cheapest_plan(a, device, kInt4Costs, blocks).plan, {}, a.N} : cheapest_cut(a, device, kByteCosts, blocks);
  Plan plan{.consumers = 2, .tokens = 64, .ctas = 2, .split = 1};
  if (a.M <= 32) plan = int4 ? Plan{1, 32, 4, 1} : narrow ? Plan{1, 32, 3, 1} : Plan{2, 32, 2, 1};
  else if (int4 && narrow) plan = {1, 64, 3, 1};
  const int64_t tiles = tiles_of(a, plan.consumers, plan.tokens);
  if (!int4 && a.G == 1 && plan.tokens == 64 && tiles >= 100 && tiles <= device.multiprocessors) return {{2, 64, 1, 1}, {}, a.N};
  const int64_t at_once = device.multiprocessors * plan.ctas;
  const int most = int4 && a.M <= 32 ? 8 : 4;
  while (plan.split < most && tiles * plan.split * 2 <= at_once && blocks >= 16 * plan.split) plan.split *= 2;
  return {plan, {}, a.N};
}

const char* device_refusal(const Device& device) {
#ifndef AO_CUDA_SM90A
  return "ao_kernels._cuda was built without architecture 90a, which the kernel of more than 16 tokens needs";
#endif
  if (device.capability != 90) return "the kernel of more than 16 tokens needs compute capability 9.0";
  return has_tensor_maps() ? "" : "the driver cannot describe tensors to the copy engine";
}

bool takes(const LinearArgs& a, const Device& device) {
  const bool one_group = a.group_size >= a.K;
  if (a.bits > 0 && a.bits != 4) return false;
  if (*device_refusal(device) || a.x_dtype != DType::bf16 || a.M >= kLibraryTokens || a.K % 32) return false;
  if (one_group ? a.zero != nullptr : a.scale_dtype != (a.bits < 0 ? DType::f32 : DType::bf16)) return false;
  if (!one_group && a.group_size % kStageK && (a.bits == kE5m2 || (a.group_size != 64 && a.group_size != 32)))
    return false;
  // Coordinates of the copy engine are ints, and its rows begin at multiples of 16 bytes.
  return a.N <= INT_MAX - 256 && a.K <= INT_MAX / 16 && a.x_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(a.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
}

// Output features from first_n to end_n. follows: another of these grids, which waited for all before it, is in front.
static cudaError_t launch_part(const LinearArgs& a, const Device& device, cudaStream_t stream, const Plan& plan, int64_t first_n,
                               int64_t end_n, bool follows) {
  Launch l;
  l.plan = plan;
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  l.args = {.scale = a.scale, .zero = a.zero, .bias = a.bias, .y = static_cast<__nv_bfloat16*>(a.y),
            .M = static_cast<int>(a.M), .N = static_cast<int>(a.N), .K = static_cast<int>(a.K), .G = static_cast<int>(a.G),
            .scale_stride = static_cast<int>(a.scale_stride), .group_size = static_cast<int>(a.group_size),
            .block_n = static_cast<int>(a.block_n), .split = l.plan.split,
            .scale_dtype = a.scale_dtype, .bias_dtype = a.bias_dtype, .chained = l.early && (follows || is_chained(stream)),
            .first_n = static_cast<int>(first_n), .end_n = static_cast<int>(end_n)};
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, a.x, a.K, a.M, 2 * a.x_stride, 64, l.plan.tokens,
              CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, a.codes, a.row_bytes, a.N, a.row_bytes,
              stage_code_bytes(a.bits), 64 * l.plan.consumers, a.bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  const bool row = a.G == 1, stages = a.group_size % kStageK == 0;  // what a group spans
  switch (a.bits) {
    case kInt8: return row ? launch_groups<kInt8, 0>(l) : stages ? launch_groups<kInt8, 1>(l) : launch_groups<kInt8, 4>(l);
    case kE4m3: return row ? launch_groups<kE4m3, 0>(l) : stages ? launch_groups<kE4m3, 1>(l) : launch_groups<kE4m3, 4>(l);
    case kE5m2: return row ? launch_groups<kE5m2, 0>(l) : launch_groups<kE5m2, 1>(l);
    default: break;
  }
  if (row) return launch_groups<4, 0>(l);
  if (stages) return launch_groups<4, 1>(l);
  return a.group_size == 64 ? launch_groups<4, 2>(l) : launch_groups<4, 4>(l);
}

cudaError_t launch(const LinearArgs& a, const Device& device, cudaStream_t stream) {
  if (mid::takes(a, device)) return mid::launch(a, device, stream);
  const Cut cut = make_cut(a, device);
  const cudaError_t error = launch_part(a, device, stream, cut.first, 0, cut.first_rows, false);
  if (error || cut.first_rows == a.N) return error;
  return launch_part(a, device, stream, cut.second, cut.first_rows, a.N, true);
}

}  // namespace ao::large
