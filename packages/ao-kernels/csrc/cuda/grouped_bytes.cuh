// byte_product.cuh for experts: a tile has tokens of one expert, which its CTA finds from `offsets`. CTAs take tiles in turn, as many as
// the offsets give; nobody on the host needs to know how many that is.
#pragma once
#include "cuda/byte_product.cuh"
#include "cuda/byte_product.h"
#include "cuda/experts.cuh"
#include "cuda/grid.h"

namespace ao::bytes {

struct GroupedLaunch {
  CUtensorMap x_map, codes_map;  // (T, K) and (E N, K)
  ProductArgs args;              // of expert 0; M = T, split = 1
  Experts experts;
  int64_t scale_bytes, bias_bytes;  // from one expert's to the next one's
  int tokens, rows;                 // of a tile
  int multiprocessors;
  bool early;
  cudaStream_t stream;
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::CTAS)
grouped_byte_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map,
                     const __grid_constant__ ProductArgs given, const __grid_constant__ Experts experts, const int64_t scale_bytes,
                     const int64_t bias_bytes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u, buffer = ring + T::kRing;
  const uint32_t full = buffer + T::kEpilogue, empty = full + 8 * STAGES;
  int* const upto = reinterpret_cast<int*>(memory + (empty + 8 * STAGES - shared_address(memory)));
  const int tiles_n = (given.N + T::kRows - 1) / T::kRows, n_blocks = (given.K + kStageK - 1) / kStageK;

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * T::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  wait_for_earlier_grids();  // offsets come from one of them
  if (threadIdx.x < 32) count_tiles(experts, T::BM, upto);
  __syncthreads();
  let_later_grids_start();
  const int tiles_m = upto[experts.E], n_tiles = tiles_m * tiles_n;

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == T::CONSUMERS) {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::kProducerRegisters));
    if (threadIdx.x == 128 * T::CONSUMERS) {
      int stage = 0, phase = 0;
      for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        const TilePlace at = place_together(tile, tiles_m, tiles_n);
        const Rows rows = rows_of_tile(experts, T::BM, upto, at.m);
        if (rows.expert == experts.E) continue;
        const int row = rows.expert * given.N + at.n * T::kRows;
        for (int block = 0; block < n_blocks; ++block) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(full + 8 * stage, T::kStage);
          load_box(ring + stage * T::kStage, &codes_map, block * kStageK, row, full + 8 * stage);
          load_box(ring + stage * T::kStage + T::kCodes, &x_map, block * kStageK, rows.first, full + 8 * stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::kConsumerRegisters));
    ProductArgs a = given;  // of the expert in turn
    Consumer<T> consumer(a, warpgroup);
    consumer.ring_ = ring;
    int stage = 0, phase = 0;
    const auto wait = [&] {
      barrier_wait(full + 8 * stage, phase);
      const int found = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
      return found;
    };
    const auto release = [&](int s) {
      if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * s);
    };
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      const TilePlace at = place_together(tile, tiles_m, tiles_n);
      const Rows rows = rows_of_tile(experts, T::BM, upto, at.m);
      const int n = at.n * T::kRows;
      if (rows.expert == experts.E) {
        clear_rows(given.y, given.y_dtype == DType::f32 ? 4 : 2, given.N, rows.first, min(rows.first + T::BM, rows.stop), n, T::kRows,
                   threadIdx.x, 128 * T::CONSUMERS);
        continue;
      }
      a.M = rows.stop;
      a.scale = static_cast<const uint8_t*>(given.scale) + rows.expert * scale_bytes;
      if (given.bias) a.bias = static_cast<const uint8_t*>(given.bias) + rows.expert * bias_bytes;
      consumer.run(n, 0, n_blocks, wait, release);
      consumer.store(rows.first, n, buffer);
    }
  }
#endif
}

template <class T>
cudaError_t launch_grouped_tile(const GroupedLaunch& l) {
  constexpr auto kernel = grouped_byte_product<T>;
  const int shared = T::kShared + 4 * (l.experts.E + 1);
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared + 4 * (kMostExperts + 1))) return error;
  const int64_t tiles = most_tiles(l.experts, T::BM) * ((l.args.N + T::kRows - 1) / T::kRows);
  const int64_t at_once = l.multiprocessors * T::CTAS;
  Grid grid(static_cast<unsigned>(tiles < at_once ? tiles : at_once), T::kThreads, shared, l.stream);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args, l.experts, l.scale_bytes, l.bias_bytes);
}

// Stages as of launch_plan.
template <class Kind>
cudaError_t launch_grouped(const GroupedLaunch& l) {
  switch (l.tokens) {
    case 16: return launch_grouped_tile<Tile<Kind, 1, 16, 10, 2, false>>(l);
    case 32: return launch_grouped_tile<Tile<Kind, 1, 32, 8, 2, false>>(l);
    case 64: return launch_grouped_tile<Tile<Kind, 1, 64, 6, 2, false>>(l);
    case 128: return launch_grouped_tile<Tile<Kind, 2, 128, 6, 1, false>>(l);
    default:
      if constexpr (std::is_same_v<typename Kind::Sum, float>) return cudaErrorInvalidValue;
      else return launch_grouped_tile<Tile<Kind, 2, 256, 4, 1, false>>(l);
  }
}

}  // namespace ao::bytes
