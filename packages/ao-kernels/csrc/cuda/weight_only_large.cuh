// Weight-only linear for many tokens on Hopper: y[m, n] = sum_k x[m, k] * w[n, k] + bias[n], bfloat16, float32 sums.
//
// A CTA makes a tile of 64 to 256 output features by BM tokens. One thread has the copy engine fill a ring of stages, each
// 128 input features of codes (64 or 128 bytes a row) and activations; each warpgroup reads its 64 rows' codes, turns them into
// bf16 in registers, where wgmma takes its left operand, and multiplies with the tokens in shared memory, which are its
// narrow side. Two register sets alternate, so that codes of one half stage can be unpacked while the tensor cores
// work on the other; how far they overlap is in docs/decisions/0018.
//
// Weights are (code - zero) * scale rounded to bf16, as dequantizing before a matrix product gives them; a scale that spans the
// row is applied to the float32 sums instead, so that those weights are exact. weight_only_large_<int4|bytes>.cuh make them.
//
// A grid may start while the ones before it in the stream still run, and fetches its first codes at once where it is chained to
// the one in front (chain.h). Asking otherwise for them to be brought into L2 made int8 slower (22.4 instead of 21.9 us at 32 tokens).
//
// With split > 1 the CTAs of a cluster share a tile, each with its part of K, and add the float32 sums up through
// distributed shared memory in the order of their ranks: bits repeat, and no workspace is needed.
#pragma once
#include <type_traits>

#include "cuda/floats.cuh"
#include "cuda/fragments.cuh"
#include "cuda/tile_store.cuh"
#include "cuda/tma.cuh"
#include "cuda/weight_only_large_bytes.cuh"
#include "cuda/weight_only_large_int4.cuh"
#include "cuda/wgmma.cuh"

namespace ao::large {

template <class Tile, bool ZERO>
class LargeConsumer {
 public:
  static constexpr int BM = Tile::BM;
  using Weights = std::conditional_t<Tile::CODES == 4, Int4Weights<Tile, ZERO>, ByteWeights<Tile>>;

  __device__ explicit LargeConsumer(const LargeThread& thread) : weights(thread), thread_(thread), a_(thread.args) {}

  Weights weights;

  // x: the descriptor of the stage's tokens.
  template <int H>
  __device__ void multiply(uint32_t x, int accumulate) {
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s)
      Wgmma<BM>::run(sum_, weights.operand[H][s], descriptor_of(x + (H * Tile::kHalfX + 32 * s) / 16), accumulate | s);
    wgmma_commit();
  }

  // Row-wide scale, zero is refused there, and bias.
  __device__ void finish(int n0) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int n = min(n0 + thread_.row(part), a_.N - 1);
      float scale = 1.0f;
      if constexpr (Tile::NS == 0) {
        const int scales = Tile::CODES < 0 && a_.block_n > 1 ? n / a_.block_n : n;
        scale = load_float(a_.scale, a_.scale_dtype, int64_t{scales} * a_.scale_stride);
      }
      const float bias = a_.bias && a_.split == 1 ? load_float(a_.bias, a_.bias_dtype, n) : 0.0f;
#pragma unroll
      for (int j = 0; j < BM / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& v = sum_[4 * j + 2 * part + i];
          v = fmaf(v * Weights::kFactor, scale, bias);
        }
    }
  }

  __device__ void store(int m0, int n0, uint32_t buffer) {
    const auto pair = [&](int j, int part) {
      return bits_of(__floats2bfloat162_rn(sum_[4 * j + 2 * part], sum_[4 * j + 2 * part + 1]));
    };
    store_tile<BM>(reinterpret_cast<uint16_t*>(a_.y), a_.M, a_.N, m0, n0 + thread_.warpgroup * 64, thread_.warpgroup, buffer, pair);
  }

  // parts[token][row] of this CTA.
  __device__ void store_part(uint32_t parts, bool any) const {
#pragma unroll
    for (int j = 0; j < BM / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + 2 * thread_.t + i % 2;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(parts + 4 * (token * Tile::kPitch + thread_.row(i / 2))),
                     "f"(any ? sum_[4 * j + i] : 0.0f)
                     : "memory");
      }
  }

 private:
  const LargeThread& thread_;
  const LargeArgs& a_;
  float sum_[BM / 2];
};

// The sums of a tile, each CTA of the cluster a share of them.
template <class Tile>
__device__ void add_parts(const LargeArgs& a, uint32_t parts, int rank, int tiles_m) {
  const int tile = blockIdx.x / a.split, m0 = tile % tiles_m * Tile::BM, n0 = a.first_n + tile / tiles_m * Tile::BN;
  constexpr int kFours = Tile::BN / 4, kAdders = Tile::kConsumerThreads;
  for (int i = rank * kAdders + threadIdx.x; i < Tile::BM * kFours; i += a.split * kAdders) {
    const int token = i / kFours, n = n0 + i % kFours * 4, m = m0 + token;
    if (m >= a.M || n >= a.N) continue;
    const uint32_t at = parts + 4 * (token * Tile::kPitch + i % kFours * 4);
    float sum[4] = {};
    for (int r = 0; r < a.split; r += 2) {  // a power of two
      const float4 one = load_remote(at, r), two = load_remote(at, r + 1);
      sum[0] += one.x, sum[1] += one.y, sum[2] += one.z, sum[3] += one.w;
      sum[0] += two.x, sum[1] += two.y, sum[2] += two.z, sum[3] += two.w;
    }
    __nv_bfloat16* y = a.y + int64_t{m} * a.N + n;
    __nv_bfloat16 out[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float bias = a.bias ? load_float(a.bias, a.bias_dtype, min(n + e, a.N - 1)) : 0.0f;
      out[e] = __float2bfloat16(sum[e] + bias);
    }
    if (a.N % 4 == 0) {
      *reinterpret_cast<uint2*>(y) = *reinterpret_cast<uint2*>(out);
    } else {
      for (int e = 0; e < 4; ++e)
        if (n + e < a.N) y[e] = out[e];
    }
  }
}

// The copies into the ring, which one thread asks for: of all blocks of K of all tiles of this CTA, one after the other.
template <class Tile>
struct Loader {
  const CUtensorMap *x_map, *codes_map;
  uint32_t ring, full, empty;
  int first_n, tiles_m, n_tiles, tile_step, first, last;
  int tile, block;  // to be loaded next
  int stage = 0, phase = 1;

  __device__ bool more() const { return tile < n_tiles; }

  __device__ void codes() {
    barrier_wait(empty + 8 * stage, phase);
    barrier_expect(full + 8 * stage, Tile::kStage);
    load_box(ring + stage * Tile::kStage, codes_map, block * stage_code_bytes(Tile::CODES), first_n + tile / tiles_m * Tile::BN, full + 8 * stage);
  }

  __device__ void tokens() const {
    const uint32_t to = ring + stage * Tile::kStage + Tile::kCodes;
    load_box(to, x_map, block * kStageK, tile % tiles_m * Tile::BM, full + 8 * stage);
    load_box(to + Tile::kHalfX, x_map, block * kStageK + 64, tile % tiles_m * Tile::BM, full + 8 * stage);
  }

  __device__ void advance() {
    if (++stage == Tile::STAGES) stage = 0, phase ^= 1;
    if (++block == last) block = first, tile += tile_step;
  }

  // Fills the ring. Codes come first where the grid in front cannot be writing them any more.
  __device__ void start(bool chained) {
    Loader ahead = *this;
    int n_codes = 0;
    if (chained)
      for (; n_codes < Tile::STAGES && ahead.more(); ++n_codes) ahead.codes(), ahead.advance();
    wait_for_earlier_grids();
    let_later_grids_start();
    for (int i = 0; i < Tile::STAGES && more(); ++i) {
      if (i >= n_codes) codes();
      tokens();
      advance();
    }
  }

  __device__ void next() {
    if (!more()) return;
    codes();
    tokens();
    advance();
  }
};

template <class Tile, bool ZERO>
__global__ void __launch_bounds__(Tile::kThreads, Tile::CTAS)
weight_only_large(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map, const LargeArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // other architectures have no wgmma; device_refusal keeps their devices away
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = Tile::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t buffer = ring + Tile::kRing, full = buffer + Tile::kEpilogue, empty = full + 8 * STAGES;
  const int tiles_m = (a.M + Tile::BM - 1) / Tile::BM, n_tiles = tiles_m * ((a.end_n - a.first_n + Tile::BN - 1) / Tile::BN);
  const int rank = blockIdx.x % a.split, first_tile = blockIdx.x / a.split, tile_step = gridDim.x / a.split;
  const int n_blocks = (a.K + kStageK - 1) / kStageK, per_split = (n_blocks + a.split - 1) / a.split;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);

  Loader<Tile> loader{&x_map, &codes_map, ring, full, empty, a.first_n, tiles_m, first < last ? n_tiles : 0, tile_step, first, last, first_tile, first};
  constexpr int kLoader = Tile::kProducer ? Tile::kConsumerThreads : 0;  // the thread that fills the ring
  if (threadIdx.x == kLoader) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * Tile::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    loader.start(a.chained);
  } else {
    wait_for_earlier_grids();
  }
  __syncthreads();

  if constexpr (Tile::kProducer) {
    if (threadIdx.x >= kLoader) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kProducerRegisters));
      if (threadIdx.x == kLoader)
        while (loader.more()) loader.next();
      __syncwarp();
      if (a.split > 1) {
        cluster_sync();
        cluster_sync();
      }
      return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kConsumerRegisters));
  }
  const LargeThread thread(a, threadIdx.x / 128);
  LargeConsumer<Tile, ZERO> consumer(thread);
  int stage = 0, phase = 0;
  const auto release = [&](int s) {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * s);
  };
  const auto refill = [&] {
    if constexpr (Tile::kProducer) return;
    if (threadIdx.x == 0) loader.next();
    __syncwarp();
  };
  for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
    const int m0 = tile % tiles_m * Tile::BM, n0 = a.first_n + tile / tiles_m * Tile::BN;
    consumer.weights.start_scales(n0, first);
    int before = -1;
    for (int block = first; block < last; ++block) {
      consumer.weights.take_scales(block);
      barrier_wait(full + 8 * stage, phase);
      const uint32_t codes = ring + stage * Tile::kStage, x = descriptor_start(codes + Tile::kCodes);
      consumer.weights.template unpack<0>(codes);
      consumer.template multiply<0>(x, block > first);
      wgmma_wait<1>();
      if (before >= 0) release(before);
      consumer.weights.template unpack<1>(codes);
      consumer.template multiply<1>(x, 1);
      if (before >= 0) refill();  // late, so that the other warps have released the stage, too
      wgmma_wait<1>();
      before = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    wgmma_wait<0>();
    if (before >= 0) {
      release(before);
      refill();
    }
    consumer.finish(n0);
    if (a.split == 1) consumer.store(m0, n0, buffer);
  }
  if constexpr (Tile::kSplits) {
    if (a.split > 1) {
      asm volatile("bar.sync 8, %0;" ::"n"(Tile::kConsumerThreads) : "memory");  // the other warpgroups have read their last stage
      consumer.store_part(ring, first < last);
      cluster_sync();
      add_parts<Tile>(a, ring, rank, tiles_m);
      cluster_sync();  // the others may still read this CTA's memory
    }
  }
#endif
}

}  // namespace ao::large
