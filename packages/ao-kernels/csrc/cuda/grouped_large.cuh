// weight_only_large.cuh for experts: a tile has tokens of one expert, which its CTA finds from `offsets`, as in grouped_bytes.cuh.
#pragma once
#include "cuda/experts.cuh"
#include "cuda/grid.h"
#include "cuda/weight_only_large.cuh"

namespace ao::large {

// As LargeTile, for what LargeConsumer asks of it, but with a warpgroup that only fills the ring in CTAs of any size: to find the next tile is
// its work, too.
template <int CODES_, int BM_, int STAGES_, int CTAS_, int NS_>
struct GroupedTile {
  static constexpr int CODES = CODES_, CONSUMERS = 2, BM = BM_, STAGES = STAGES_, CTAS = CTAS_, NS = NS_;
  // Registers a thread, moved from the producer's warpgroup to the consumers': 168 or 80 at launch.
  static constexpr int kProducerRegisters = CTAS == 1 ? 40 : 24, kConsumerRegisters = CTAS == 1 ? 232 : 104;
  static constexpr int kConsumerThreads = 128 * CONSUMERS, kThreads = kConsumerThreads + 128;
  static constexpr int BN = 64 * CONSUMERS;
  static constexpr int kCodes = BN * stage_code_bytes(CODES);
  static constexpr int kHalfX = BM * 128;  // 64 input features of all tokens
  static constexpr int kStage = kCodes + 2 * kHalfX;
  static constexpr int kEpilogue = store_bytes(CONSUMERS, BM);
  static constexpr int kPitch = BN + 4;
  static constexpr int kRing = STAGES * kStage;
  static constexpr int kShared = 1024 + kRing + kEpilogue + 16 * STAGES;
  static_assert(kCodes % 1024 == 0 && kHalfX % 1024 == 0);
};

struct GroupedLaunch {
  CUtensorMap x_map, codes_map;  // (T, K) and (E N, bytes of a row)
  LargeArgs args;                // of expert 0; M = T
  Experts experts;
  int64_t scale_bytes, bias_bytes;  // from one expert's to the next one's
  int tokens;                       // of a tile
  int multiprocessors, shared_bytes;
  bool early;
  cudaStream_t stream;
};

template <class Tile, bool ZERO>
__global__ void __launch_bounds__(Tile::kThreads, Tile::CTAS)
grouped_weight_only_large(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map,
                          const __grid_constant__ LargeArgs given, const __grid_constant__ Experts experts, const int64_t scale_bytes,
                          const int64_t bias_bytes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = Tile::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t buffer = ring + Tile::kRing, full = buffer + Tile::kEpilogue, empty = full + 8 * STAGES;
  int* const upto = reinterpret_cast<int*>(memory + (empty + 8 * STAGES - shared_address(memory)));
  const int tiles_n = (given.N + Tile::BN - 1) / Tile::BN, n_blocks = (given.K + kStageK - 1) / kStageK;

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * Tile::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  wait_for_earlier_grids();  // offsets come from one of them
  if (threadIdx.x < 32) count_tiles(experts, Tile::BM, upto);
  __syncthreads();
  let_later_grids_start();
  const int tiles_m = upto[experts.E], n_tiles = tiles_m * tiles_n;
  const int warpgroup = threadIdx.x / 128;

  if (warpgroup == Tile::CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kProducerRegisters));
    if (threadIdx.x == Tile::kConsumerThreads) {
      int stage = 0, phase = 0;
      for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        const TilePlace at = place_together(tile, tiles_m, tiles_n);
        const Rows rows = rows_of_tile(experts, Tile::BM, upto, at.m);
        if (rows.expert == experts.E) continue;
        const int row = rows.expert * given.N + at.n * Tile::BN;
        for (int block = 0; block < n_blocks; ++block) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(full + 8 * stage, Tile::kStage);
          const uint32_t to = ring + stage * Tile::kStage;
          load_box(to, &codes_map, block * stage_code_bytes(Tile::CODES), row, full + 8 * stage);
          load_box(to + Tile::kCodes, &x_map, block * kStageK, rows.first, full + 8 * stage);
          load_box(to + Tile::kCodes + Tile::kHalfX, &x_map, block * kStageK + 64, rows.first, full + 8 * stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kConsumerRegisters));
    LargeArgs a = given;  // of the expert in turn
    const LargeThread thread(a, warpgroup);
    LargeConsumer<Tile, ZERO> consumer(thread);
    int stage = 0, phase = 0;
    const auto release = [&](int s) {
      if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * s);
    };
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      const TilePlace at = place_together(tile, tiles_m, tiles_n);
      const Rows rows = rows_of_tile(experts, Tile::BM, upto, at.m);
      const int n0 = at.n * Tile::BN;
      if (rows.expert == experts.E) {
        clear_rows(given.y, 2, given.N, rows.first, min(rows.first + Tile::BM, rows.stop), n0, Tile::BN, threadIdx.x, Tile::kConsumerThreads);
        continue;
      }
      a.M = rows.stop;
      a.scale = static_cast<const uint8_t*>(given.scale) + rows.expert * scale_bytes;
      if constexpr (ZERO) a.zero = static_cast<const uint8_t*>(given.zero) + rows.expert * scale_bytes;
      if (given.bias) a.bias = static_cast<const uint8_t*>(given.bias) + rows.expert * bias_bytes;
      consumer.weights.start_scales(n0, 0);
      int before = -1;
      for (int block = 0; block < n_blocks; ++block) {
        consumer.weights.take_scales(block);
        barrier_wait(full + 8 * stage, phase);
        const uint32_t codes = ring + stage * Tile::kStage, x = descriptor_start(codes + Tile::kCodes);
        consumer.weights.template unpack<0>(codes);
        consumer.template multiply<0>(x, block > 0);
        wgmma_wait<1>();
        if (before >= 0) release(before);
        consumer.weights.template unpack<1>(codes);
        consumer.template multiply<1>(x, 1);
        wgmma_wait<1>();
        before = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      wgmma_wait<0>();
      release(before);
      consumer.finish(n0);
      consumer.store(rows.first, n0, buffer);
    }
  }
#endif
}

template <class Tile, bool ZERO>
cudaError_t launch_grouped_tile(const GroupedLaunch& l) {
  constexpr auto kernel = grouped_weight_only_large<Tile, ZERO>;
  const int shared = Tile::kShared + 4 * (l.experts.E + 1);
  if (shared > l.shared_bytes) return cudaErrorInvalidValue;
  if (const cudaError_t error = allow_shared_memory<kernel>(l.shared_bytes)) return error;
  const int64_t tiles = most_tiles(l.experts, Tile::BM) * ((l.args.N + Tile::BN - 1) / Tile::BN);
  const int64_t at_once = l.multiprocessors * Tile::CTAS;
  Grid grid(static_cast<unsigned>(tiles < at_once ? tiles : at_once), Tile::kThreads, shared, l.stream);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args, l.experts, l.scale_bytes, l.bias_bytes);
}

// They fill the shared memory of a multiprocessor (128 tokens or more), or half of it, but for the table of experts.
constexpr int grouped_stages_of(int codes, int tokens) {
  if (codes == 4) return tokens == 32 ? 6 : tokens == 64 ? 4 : tokens == 128 ? 5 : 3;
  return tokens == 32 ? 4 : tokens == 64 ? 3 : tokens == 128 ? 4 : 2;
}

template <int CODES, int NS, bool ZERO, int BM>
cudaError_t launch_grouped_sizes(const GroupedLaunch& l) {
  return launch_grouped_tile<GroupedTile<CODES, BM, grouped_stages_of(CODES, BM), BM < 128 ? 2 : 1, NS>, ZERO>(l);
}

template <int CODES, int NS, bool ZERO>
cudaError_t launch_grouped_plan(const GroupedLaunch& l) {
  switch (l.tokens) {
    case 32: return launch_grouped_sizes<CODES, NS, ZERO, 32>(l);
    case 64: return launch_grouped_sizes<CODES, NS, ZERO, 64>(l);
    case 128: return launch_grouped_sizes<CODES, NS, ZERO, 128>(l);
    default: return launch_grouped_sizes<CODES, NS, ZERO, 256>(l);
  }
}

template <int CODES, int NS>
cudaError_t launch_grouped(const GroupedLaunch& l) {
  if constexpr (CODES == 4 && NS > 0) {
    if (l.args.zero) return launch_grouped_plan<CODES, NS, true>(l);
  }
  return launch_grouped_plan<CODES, NS, false>(l);
}

}  // namespace ao::large
