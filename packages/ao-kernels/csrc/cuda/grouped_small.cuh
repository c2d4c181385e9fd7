// weight_only_small.cuh for experts: blocks of one z have up to 8 NT tokens of one expert, which they find from `offsets`. There are as many z
// as the worst offsets need; blocks behind the last tile end.
#pragma once
#include "cuda/experts.cuh"
#include "cuda/grouped_small.h"
#include "cuda/weight_only_launch.cuh"

namespace ao::small {

template <int BITS, class Half, int NT, int FRAGMENTS, bool WIDE, bool ZERO, int SLOTS, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
grouped_weight_only(const __grid_constant__ Arguments given, const __grid_constant__ Experts experts, const ExpertStrides strides) {
  __shared__ Rows shared_rows;
  wait_for_earlier_grids();  // offsets come from one of them
  if (threadIdx.x < 32) {
    const Rows found = rows_of_tile(experts, 8 * NT, blockIdx.z);
    if (threadIdx.x == 0) shared_rows = found;
  }
  __syncthreads();
  const Rows rows = shared_rows;
  if (rows.expert < 0) return;
  const int end = min(rows.first + 8 * NT, rows.stop);
  if (rows.expert == experts.E) {
    const int columns = 16 * FRAGMENTS, tile_0 = blockIdx.x * given.block_tiles + min(static_cast<int>(blockIdx.x), given.longer_blocks);
    const int tiles = given.block_tiles + (static_cast<int>(blockIdx.x) < given.longer_blocks);
    if (blockIdx.y == 0) clear_rows(given.y, 2, given.N, rows.first, end, tile_0 * columns, tiles * columns, threadIdx.x, blockDim.x);
    return;
  }
  Arguments a = given;
  const int64_t expert = rows.expert;
  a.M = end - rows.first;
  a.x += rows.first * a.x_stride;
  a.y += static_cast<int64_t>(rows.first) * a.N;
  a.codes += expert * a.N * a.row_bytes;
  a.scale = static_cast<const uint8_t*>(a.scale) + expert * strides.scale_bytes;
  if constexpr (ZERO) a.zero = static_cast<const uint8_t*>(a.zero) + expert * strides.scale_bytes;
  if (a.bias) a.bias = static_cast<const uint8_t*>(a.bias) + expert * strides.bias_bytes;
  a.chained = true;  // all earlier grids have ended: codes are fetched at once
  multiply_block<BITS, Half, NT, FRAGMENTS, WIDE, ZERO, SLOTS>(a);
}

template <int BITS, int NT, bool WIDE, bool ZERO>
cudaError_t launch_grouped_variant(const GroupedLaunch& l) {
  constexpr int unit_bytes = Codes<BITS>::kUnitBytes, fragments = fragments_of(unit_bytes, WIDE, 8 * NT);
  constexpr int slots = slots_of(unit_bytes, WIDE), threads = most_threads(unit_bytes, WIDE, 8 * NT);
  constexpr auto kernel = grouped_weight_only<BITS, __nv_bfloat16, NT, fragments, WIDE, ZERO, slots, threads>;
  const size_t limit = static_cast<size_t>(l.shared_limit);
  if (l.plan.shared_bytes > 47 << 10) {
    if (const cudaError_t error = allow_shared_memory<kernel>(l.shared_limit)) return error;
  }
  const Plan& plan = l.plan;
  const auto z = static_cast<unsigned>(most_tiles(l.experts, 8 * NT));
  Grid grid(dim3(plan.blocks, plan.cluster, z), plan.tiles * plan.splits * 32, plan.shared_bytes < limit ? plan.shared_bytes : limit,
            l.stream);
  if (plan.cluster > 1) grid.cluster(1, plan.cluster);
  if (plan.early) grid.early();
  return grid.start(kernel, make_arguments(l.one, plan, WIDE, fragments), l.experts, l.strides);
}

template <int BITS>
cudaError_t launch_grouped(const GroupedLaunch& l) {
  const LinearArgs& a = l.one;
  const bool wide = a.group_size >= a.K || a.group_size % kStep == 0, few = a.M <= 8;
  if constexpr (BITS > 0) {
    if (a.zero) {
      if (wide) return few ? launch_grouped_variant<BITS, 1, true, true>(l) : launch_grouped_variant<BITS, 2, true, true>(l);
      return few ? launch_grouped_variant<BITS, 1, false, true>(l) : launch_grouped_variant<BITS, 2, false, true>(l);
    }
    if (!wide) return few ? launch_grouped_variant<BITS, 1, false, false>(l) : launch_grouped_variant<BITS, 2, false, false>(l);
  }
  if (!wide) return cudaErrorInvalidValue;
  return few ? launch_grouped_variant<BITS, 1, true, false>(l) : launch_grouped_variant<BITS, 2, true, false>(l);
}

}  // namespace ao::small
