// The launch of weight_only_small.cuh: from arguments that are known when the program runs to template parameters.
#pragma once
#include "cuda/grid.h"
#include "cuda/weight_only_small.cuh"

namespace ao::small {

template <int BITS, class Half, int NT, int FRAGMENTS, bool WIDE, bool ZERO, int SLOTS, int THREADS>
cudaError_t launch_variant(Arguments a, const Plan& plan, int shared_limit, cudaStream_t stream) {
  constexpr auto kernel = weight_only<BITS, Half, NT, FRAGMENTS, WIDE, ZERO, SLOTS, THREADS>;
  if (plan.shared_bytes > 48 << 10) {
    if (const cudaError_t error = allow_shared_memory<kernel>(shared_limit)) return error;
  }
  Grid grid(dim3(plan.blocks, plan.cluster), plan.tiles * plan.splits * 32, plan.shared_bytes, stream);
  if (plan.cluster > 1) grid.cluster(1, plan.cluster);
  if (plan.early) grid.early();
  a.chained = plan.early && is_chained(stream);
  return grid.start(kernel, a);
}

inline Arguments make_arguments(const LinearArgs& a, const Plan& plan, bool wide, int fragments) {
  const int all_tiles = static_cast<int>((a.N + 16 * fragments - 1) / (16 * fragments));
  const bool one_group = a.group_size >= a.K;
  const int steps = static_cast<int>((a.K + kStep - 1) / kStep);
  const int slice = (steps + plan.cluster - 1) / plan.cluster;
  const uint32_t spans = static_cast<uint32_t>(a.group_size / (wide ? kStep : 32));
  return {.codes = a.codes, .x = static_cast<const uint16_t*>(a.x), .y = static_cast<uint16_t*>(a.y),
          .scale = a.scale, .zero = a.zero, .bias = a.bias, .x_stride = a.x_stride,
          .row_bytes = a.row_bytes, .scale_stride = static_cast<uint32_t>(a.scale_stride),
          .block_n = static_cast<int>(a.block_n), .M = static_cast<int>(a.M),
          .N = static_cast<int>(a.N), .K = static_cast<int>(a.K),
          .steps = steps,
          .group_inverse = one_group || spans == 1 ? 0 : static_cast<uint32_t>((uint64_t{1} << 32) / spans + 1),
          .every_span = !one_group && spans == 1, .scale_bytes = a.scale_dtype == DType::f32 ? 4u : 2u,
          .bias_dtype = a.bias_dtype, .tiles = plan.tiles, .splits = plan.splits,
          .cluster = plan.cluster, .block_tiles = all_tiles / plan.blocks, .longer_blocks = all_tiles % plan.blocks,
          .tiles_inverse = (4095 + plan.tiles) / plan.tiles, .slice = slice,
          .split_steps = slice / plan.splits, .longer_splits = slice % plan.splits,
          .x_row = plan.x_row};
}

template <int BITS, class Half, int NT, bool WIDE>
cudaError_t launch_typed(const LinearArgs& a, const Device& device, const Plan& plan, cudaStream_t stream) {
  constexpr int unit_bytes = Codes<BITS>::kUnitBytes, fragments = fragments_of(unit_bytes, WIDE, 8 * NT);
  constexpr int slots = slots_of(unit_bytes, WIDE), threads = most_threads(unit_bytes, WIDE, 8 * NT);
  const Arguments arguments = make_arguments(a, plan, WIDE, fragments);
  if constexpr (BITS > 0) {
    if (a.zero)
      return launch_variant<BITS, Half, NT, fragments, WIDE, true, slots, threads>(arguments, plan,
                                                                                 device.shared_bytes, stream);
  }
  return launch_variant<BITS, Half, NT, fragments, WIDE, false, slots, threads>(arguments, plan,
                                                                              device.shared_bytes, stream);
}

template <int BITS, class Half>
cudaError_t launch_half(const LinearArgs& a, const Device& device, const Plan& plan, cudaStream_t stream) {
  const bool wide = a.group_size >= a.K || a.group_size % kStep == 0;
  if (a.M <= 8)
    return wide ? launch_typed<BITS, Half, 1, true>(a, device, plan, stream)
                : launch_typed<BITS, Half, 1, false>(a, device, plan, stream);
  return wide ? launch_typed<BITS, Half, 2, true>(a, device, plan, stream)
              : launch_typed<BITS, Half, 2, false>(a, device, plan, stream);
}

template <int BITS>
cudaError_t launch(const LinearArgs& a, const Device& device, const Plan& plan, cudaStream_t stream) {
  return a.x_dtype == DType::bf16 ? launch_half<BITS, __nv_bfloat16>(a, device, plan, stream)
                                  : launch_half<BITS, __half>(a, device, plan, stream);
}

}  // namespace ao::small
