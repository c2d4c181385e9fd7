// The linear of byte_product.cuh for few tokens in one grid: every CTA quantizes the tokens that it multiplies.
//
// The ring is that of byte_product.cuh. The copy engine fills the weights of a stage, a helper warp its tokens: it reads 128 input features of all
// tokens, writes their codes where the copy engine would have put them, and arrives. Helpers take stages in turn.
//
// Scales of rows and of the tensor need the largest magnitudes first: all warps but the producer's look for them, while weights of a
// whole ring are under way; CTAs that share a tile look in their part of K, and then read each other's. Tokens are so read twice, from L2 or L1, and those of
// blocks once: M / 16 or M / 32 of the bytes of the weights, whatever N and K are, for a CTA has 64 output features. So a tile has 16 tokens and no more.
//
// Early launch: a chained grid (chain.h) fetches weights at once, another one only asks for them to be brought into L2, where a later write of an
// earlier grid reaches them. Tokens are read, and results stored, after wait_for_earlier_grids().
#pragma once
#include "cuda/byte_product.cuh"
#include "cuda/quantize_tokens.h"
#include "cuda/token_codes.cuh"

namespace ao::bytes {

struct LinearArgs {
  ProductArgs product;  // without x_scale
  const void* x;        // (M, K), rows x_stride elements apart
  const float* given;   // one scale of all tokens
  int64_t x_stride;
  DType x_dtype;
  TokenScales scales;
  bool chained;         // to the grid in front
};

// One consumer warpgroup, a producer warp, and helpers.
template <class Kind, bool BLOCKS>
struct LinearTile : Tile<Kind, 1, 16, 10, 2, BLOCKS> {
  using Base = Tile<Kind, 1, 16, 10, 2, BLOCKS>;
  static constexpr int HELPERS = 7;
  static constexpr int kProducer = 4, kWarps = 5 + HELPERS, kThreads = 32 * kWarps;
  static constexpr int kShared = Base::kShared + 12 * Base::BM;  // Scales
  static constexpr bool kFloat8 = std::is_same_v<Kind, E4m3>;
  static constexpr float kHighest = kFloat8 ? 448.0f : 127.0f;
  static_assert(HELPERS <= Base::STAGES);
};

// Of the tokens of a tile, in shared memory; without BLOCKS.
template <int BM>
struct Scales {
  uint32_t peak[BM];  // of this CTA's part of K; of the tensor: one
  float scale[BM];    // NaN where the token has a number that is not finite
  float inverse[BM];  // what its numbers are multiplied by; see token_codes.cuh
};

// Eight values of a token as they lie in memory.
template <class X>
struct Eight {
  uint4 raw[sizeof(X) / 2];

  __device__ void clear() {
#pragma unroll
    for (auto& each : raw) each = uint4{};
  }
  __device__ void load(const X* p) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(X) / 2); ++i) raw[i] = reinterpret_cast<const uint4*>(p)[i];
  }
  __device__ void values(float (&v)[8]) const {
    const X* each = reinterpret_cast<const X*>(raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(each[i]);
  }
  // That of peak_of(). Halves are compared as integers, two at once.
  __device__ uint32_t peak() const {
    if constexpr (sizeof(X) == 2) {
      constexpr uint32_t kMagnitude = 0x7fff7fff;
      const uint32_t both = __vmaxu2(__vmaxu2(raw[0].x & kMagnitude, raw[0].y & kMagnitude),
                                     __vmaxu2(raw[0].z & kMagnitude, raw[0].w & kMagnitude));
      const uint32_t half = max(both & 0xffff, both >> 16);
      if constexpr (std::is_same_v<X, __nv_bfloat16>) return half << 16;
      else return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(half)))) & 0x7fffffffu;
    } else {
      float v[8];
      values(v);
      return peak_of(v);
    }
  }
};

// Raises peak[m], or peak[0], to the largest magnitude of x[m, 8 * first_eight : 8 * last_eight]. `worker` of `workers` warps.
template <class X>
__device__ void find_peaks(const LinearArgs& a, int first_eight, int last_eight, int worker, int workers, uint32_t* peak) {
  constexpr int kAtOnce = 4;
  const int chunks = (last_eight - first_eight + 31) / 32, units = a.product.M * chunks, lane = threadIdx.x % 32;
  int token_next = 0, chunk = worker;  // of the next unit: no division delays the loads
  for (int begin = worker; begin < units; begin += kAtOnce * workers) {
    Eight<X> eight[kAtOnce];
    int token[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      for (; chunk >= chunks; chunk -= chunks) ++token_next;
      token[i] = token_next;
      const int at = first_eight + chunk * 32 + lane;
      chunk += workers;
      eight[i].clear();
      if (token[i] < a.product.M && at < last_eight) eight[i].load(static_cast<const X*>(a.x) + token[i] * a.x_stride + 8 * at);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * workers >= units) break;
      const uint32_t highest = __reduce_max_sync(~0u, eight[i].peak());
      if (lane == 0) atomicMax(peak + (a.scales == TokenScales::tensor ? 0 : token[i]), highest);
    }
  }
}

// Scales of all tokens from the peaks of the CTAs of the cluster. Threads 0 to BM - 1.
template <class T>
__device__ void find_scales(const LinearArgs& a, Scales<T::BM>& s) {
  const int m = threadIdx.x, of = a.scales == TokenScales::tensor ? 0 : m;
  uint32_t peak = s.peak[of];
  if (a.product.split > 1)
    for (int r = 0; r < a.product.split; ++r)
      peak = max(peak, __float_as_uint(read_of_cluster(reinterpret_cast<const float*>(s.peak + of), r)));
  float scale = scale_of(peak, T::kHighest), divisor = scale;
  if (a.scales == TokenScales::given) {
    divisor = *a.given;
    scale = peak < kInfinity ? divisor : __uint_as_float(0x7fc00000);
  }
  s.scale[m] = scale;
  s.inverse[m] = T::kFloat8 ? Divisor::inverse_of(divisor) : __fdiv_rn(1.0f, divisor);
}

// The tokens of every HELPERS-th stage, this warp's.
template <class T, class X>
__device__ void quantize_stages(const LinearArgs& a, int helper, int first, int last, int tiles, uint32_t ring, uint32_t block_scales,
                                uint32_t full, uint32_t empty, const Scales<T::BM>& s) {
  constexpr int kAtOnce = 16 / sizeof(X);  // pairs of tokens under way: sixteen lanes have the 128 values of one
  const int lane = threadIdx.x % 32, half = lane / 16, column = lane % 16;
  const int M = a.product.M, eights = a.product.K / 8, blocks = last - first;
  const bool is_given = a.scales == TokenScales::given;
  const float given = is_given ? *a.given : 0;
  int stage = helper, phase = 0, block = first + helper;
  for (int i = helper; i < tiles * blocks; i += T::HELPERS) {
    while (block >= last) block -= blocks;
    const int at = block * 16 + column;
    const uint32_t to = ring + stage * T::kStage + T::kCodes;
    for (int m0 = 0; m0 < M; m0 += 2 * kAtOnce) {
      Eight<X> eight[kAtOnce];
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const int m = m0 + 2 * p + half;
        eight[p].clear();  // input features beyond K have the code 0
        if (m < M && at < eights) eight[p].load(static_cast<const X*>(a.x) + m * a.x_stride + 8 * at);
      }
      if (m0 == 0) barrier_wait(empty + 8 * stage, phase ^ 1);
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        if (m0 + 2 * p >= M) break;
        const int m = m0 + 2 * p + half;
        float v[8];
        eight[p].values(v);
        uint2 codes;
        if constexpr (T::BLOCKS) {
          uint32_t peak = eight[p].peak();
#pragma unroll
          for (int d = 1; d < 16; d *= 2) peak = max(peak, __shfl_xor_sync(~0u, peak, d));
          const float scale = scale_of(peak, T::kHighest);
          if (column == 0)
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(block_scales + stage * T::kScales + 4 * m), "f"(scale) : "memory");
          codes = float8_codes<false>(v, scale, Divisor(scale));
        } else if constexpr (T::kFloat8) {
          const float scale = s.scale[m];
          codes = is_given ? float8_codes<true>(v, given, Divisor(given, s.inverse[m]))
                           : float8_codes<false>(v, scale, Divisor(scale, s.inverse[m]));
        } else {
          codes = is_given ? int8_codes<true>(v, given, s.inverse[m]) : int8_codes<false>(v, s.scale[m], s.inverse[m]);
        }
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + m * kStageK + ((column / 2) ^ (m & 7)) * 16 + column % 2 * 8),
                     "r"(codes.x), "r"(codes.y)
                     : "memory");
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads what was stored
    __syncwarp();
    if (lane == 0) barrier_arrive(full + 8 * stage);
    block += T::HELPERS;
    stage += T::HELPERS;
    if (stage >= T::STAGES) stage -= T::STAGES, phase ^= 1;
  }
}

template <class Use>
__device__ inline void with_dtype(DType dtype, Use&& use) {
  switch (dtype) {
    case DType::bf16: use(__nv_bfloat16{}); break;
    case DType::f16: use(__half{}); break;
    default: use(float{});
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::CTAS)
byte_linear(const __grid_constant__ CUtensorMap codes_map, const __grid_constant__ LinearArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES;
  uint8_t* const aligned = memory + (-shared_address(memory) & 1023u);
  const uint32_t ring = shared_address(aligned), buffer = ring + T::kRing;
  const uint32_t block_scales = buffer + T::kEpilogue, full = block_scales + STAGES * T::kScales, empty = full + 8 * STAGES;
  Scales<T::BM>& scales =
      *reinterpret_cast<Scales<T::BM>*>(aligned + T::kRing + T::kEpilogue + STAGES * T::kScales + 16 * STAGES);
  ProductArgs product = a.product;
  product.x_scale = scales.scale;
  product.x_scale_stride = 1;
  const int split = product.split;
  const int n_tiles = (product.N + T::kRows - 1) / T::kRows;
  const int n_blocks = (product.K + kStageK - 1) / kStageK, per_split = (n_blocks + split - 1) / split;
  const int rank = blockIdx.x % split, first_tile = blockIdx.x / split, tile_step = gridDim.x / split;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);
  const int pending = min(STAGES, last - first);  // stages that are fetched at once
  const int warp = threadIdx.x / 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 2);  // the producer and a helper
      barrier_init(empty + 8 * s, 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (threadIdx.x < T::BM) scales.peak[threadIdx.x] = 0;
  __syncthreads();

  if (warp == T::kProducer) {
    if (threadIdx.x % 32 == 0) {
      if (!a.chained) {
        for (int s = 0; s < pending; ++s) prefetch_box(&codes_map, (first + s) * kStageK, first_tile * T::kRows);
        wait_for_earlier_grids();
      }
      for (int s = 0; s < pending; ++s) {
        barrier_expect(full + 8 * s, T::kCodes);
        load_box(ring + s * T::kStage, &codes_map, (first + s) * kStageK, first_tile * T::kRows, full + 8 * s);
      }
      wait_for_earlier_grids();
      let_later_grids_start();
    }
    __syncwarp();
  } else {
    wait_for_earlier_grids();
    if constexpr (!T::BLOCKS) {
      const int worker = warp < T::kProducer ? warp : warp - 1;
      with_dtype(a.x_dtype, [&](auto x) {
        find_peaks<decltype(x)>(a, first * kStageK / 8, min(last * kStageK, product.K) / 8, worker, T::kWarps - 1, scales.peak);
      });
    }
    __syncwarp();
  }
  if constexpr (!T::BLOCKS) {
    if (split > 1) cluster_sync();
    else __syncthreads();
    if (threadIdx.x < T::BM) find_scales<T>(a, scales);
    __syncthreads();
  }

  if (warp == T::kProducer) {
    if (threadIdx.x % 32 == 0) {
      int stage = pending % STAGES, phase = pending / STAGES;
      for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
        for (int block = tile == first_tile ? first + pending : first; block < last; ++block) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(full + 8 * stage, T::kCodes);
          load_box(ring + stage * T::kStage, &codes_map, block * kStageK, tile * T::kRows, full + 8 * stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
  } else if (warp > T::kProducer) {
    const int tiles = first_tile < n_tiles ? (n_tiles - 1 - first_tile) / tile_step + 1 : 0;
    with_dtype(a.x_dtype, [&](auto x) {
      quantize_stages<T, decltype(x)>(a, warp - T::kProducer - 1, first, last, tiles, ring, block_scales, full, empty, scales);
    });
  } else {
    Consumer<T> consumer(product, 0);
    consumer.ring_ = ring, consumer.scales_ = block_scales;
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
    for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
      consumer.run(tile * T::kRows, first, last, wait, release);
      if (split == 1) consumer.store(0, tile * T::kRows, buffer);
    }
    if (split > 1) {
      asm volatile("bar.sync 3, 128;" ::: "memory");  // the other warps have read their last stage
      consumer.store_part(ring);
      cluster_sync();
      add_parts<T>(product, ring, rank, {0, first_tile * T::kRows});
      cluster_sync();  // the others may still read this CTA's memory
    }
    return;
  }
  __syncwarp();
  if (split > 1) {
    cluster_sync();
    cluster_sync();
  }
#endif
}

}  // namespace ao::bytes
