// Linear of 8-bit activations and 8-bit weights on Hopper:
//
//   y[m, n] = scale[n] * x_scale[m] * sum_k x[m, k] * code[n, k] + bias[n]
//   y[m, n] = sum_g scale[n / block_n, g] * x_scale[m, g] * sum_{k in g} x[m, k] * code[n, k] + bias[n]    groups of 128
//
// A CTA makes a tile of 64 or 128 output features by BM tokens. A producer warp has the copy engine fill a ring of stages, each 128 input
// features of weights and tokens; a warpgroup for each 64 output features multiplies them from shared memory, where weights are the 64-wide side of wgmma
// and tokens the narrow one, so that one token costs little more than the bytes of the weights. `split` CTAs of a cluster share a tile, each
// with its part of K, and add up through distributed shared memory in the order of their ranks: bits repeat.
//
// int8: sums are int32, exact. float8: the matrix units keep about 14 bits of a sum; it is added to a float32 one every 128
// input features, unless the tile says otherwise.
//
// Early launch: the grid in front quantizes the tokens, started by the same call; chain.h says why nobody can be writing weights
// any more when this one starts. They are fetched at once, up to a ring of them; tokens and their scales come after
// wait_for_earlier_grids().
#pragma once
#include <cuda.h>

#include <type_traits>

#include "cuda/floats.cuh"
#include "cuda/fragments.cuh"
#include "cuda/tile_store.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace ao::bytes {

using namespace ao::large;

constexpr int kStageK = 128;     // input features a stage: the bytes of a row under the swizzle
constexpr int kGroupTiles = 8;   // tiles of tokens that are worked off together, so that tokens and weights stay in L2

struct ProductArgs {
  const float* x_scale;  // (M), one for all (x_scale_stride 0), or of blocks: (ceil(K / 128), x_scale_stride)
  const void* scale;     // (N) or one for all (scale_stride 0), f32 or bf16; of blocks: (ceil(N / block_n), ceil(K / 128)) f32
  const void* bias;      // (N) or nullptr
  void* y;               // (M, N)
  int M, N, K;
  int x_scale_stride, scale_stride;
  int block_n;
  int split;
  DType scale_dtype, bias_dtype, y_dtype;
};

// CONSUMERS: warpgroups of 64 output features. BLOCKS: scales of groups of 128. CTAS: of a multiprocessor. PROMOTES: float8 sums are added to
// float32 ones every 128 input features; else they stay in the matrix units, whatever their length.
template <class Kind_, int CONSUMERS_, int BM_, int STAGES_, int CTAS_, bool BLOCKS_,
          bool PROMOTES_ = std::is_same_v<typename Kind_::Sum, float>>
struct Tile {
  using Kind = Kind_;
  using Sum = typename Kind::Sum;
  static constexpr int CONSUMERS = CONSUMERS_, BM = BM_, STAGES = STAGES_, CTAS = CTAS_;
  static constexpr bool BLOCKS = BLOCKS_, PROMOTES = PROMOTES_;
  // Tokens that are multiplied together. 128 float32 sums of a thread leave room for 64 of the matrix units, not for 128.
  static constexpr int kPart = PROMOTES && BM > 128 ? 128 : BM;
  static_assert(!BLOCKS || kPart == BM);
  // Codes of a stage are held in registers: shared memory is read for them once, not for each part. Redefined by tiles of several parts.
  static constexpr bool kHolds = false;
  static constexpr int kRows = 64 * CONSUMERS, kThreads = 128 * (CONSUMERS + 1);
  // Registers a thread, moved from the producer's warpgroup to two consumers': 168 at launch.
  static constexpr bool kMovesRegisters = CONSUMERS == 2;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(!kMovesRegisters || CTAS == 1);
  static constexpr int kCodes = kRows * kStageK, kX = BM * kStageK, kStage = kCodes + kX;
  static constexpr int kScales = BLOCKS ? 4 * BM : 0;  // of the tokens of a stage
  static constexpr int kRing = STAGES * kStage;
  static constexpr int kEpilogue = store_bytes(CONSUMERS, BM);
  static constexpr int kPitch = kRows + 4;             // sums of a token of a part; 2 * kPitch % 32 == 8: no bank conflicts
  static constexpr bool kSplits = BM * kPitch * 4 <= kRing && BM <= 128;
  static constexpr int kShared = 1024 + kRing + kEpilogue + STAGES * kScales + 16 * STAGES;
  static_assert(kX % 1024 == 0);
};

struct Place {
  int m, n;
};

template <class T>
__device__ inline Place place_of(int tile, int tiles_m, int tiles_n) {
  const int of_group = kGroupTiles * tiles_n, first = tile / of_group * kGroupTiles, within = tile % of_group;
  const int width = min(kGroupTiles, tiles_m - first);
  return {(first + within % width) * T::BM, within / width * T::kRows};
}

__device__ inline void store_value(void* y, DType dtype, int64_t at, float v) {
  switch (dtype) {
    case DType::bf16: static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16(v); break;
    case DType::f16: static_cast<__half*>(y)[at] = __float2half(v); break;
    default: static_cast<float*>(y)[at] = v;
  }
}

// Scale and bias of an output feature.
template <class T>
struct Feature {
  float scale, bias;
  __device__ Feature(const ProductArgs& a, int n) {
    n = min(n, a.N - 1);
    scale = T::BLOCKS ? 1.0f : load_float(a.scale, a.scale_dtype, int64_t{n} * a.scale_stride);
    bias = a.bias ? load_float(a.bias, a.bias_dtype, n) : 0.0f;
  }
  // The scale of a weight comes first: it is an ordinary number, that of a token may be the smallest or the largest there is.
  __device__ float finished(typename T::Sum sum, float x_scale) const {
    const float v = static_cast<float>(sum);
    return T::BLOCKS ? v + bias : fmaf(v * scale, x_scale, bias);
  }
};

template <class T>
__device__ inline float token_scale(const ProductArgs& a, int m) {
  return T::BLOCKS ? 1.0f : a.x_scale[min(m, a.M - 1) * a.x_scale_stride];
}

template <class T>
class Consumer {
 public:
  using Sum = typename T::Sum;
  static constexpr int BM = T::BM, kSteps = kStageK / 32;  // of wgmma, a stage

  __device__ Consumer(const ProductArgs& a, int warpgroup)
      : a_(a), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32 % 4), warpgroup_(warpgroup), t_(lane_ % 4), g_(lane_ / 4) {}

  // Row of the tile that this thread holds.
  __device__ int row(int part) const { return warpgroup_ * 64 + warp_ * 16 + g_ + 8 * part; }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < BM / 2; ++i) sum_[i] = 0;
  }

  // 32 * STEPS input features of a stage, of which the first lie at these addresses.
  template <int N, int STEPS>
  __device__ void multiply(Sum (&d)[N / 2], uint32_t codes, uint32_t x, int accumulate) {
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
      WgmmaBytes<typename T::Kind, N>::run(d, b_descriptor(codes + warpgroup_ * 64 * kStageK + 32 * s), b_descriptor(x + 32 * s),
                                           accumulate | s);
    wgmma_commit();
  }

  // All stages of [first, last), and of the one behind it the first 32 * more input features, for the first TOKENS tokens. Stages are given back when
  // `release` is called with them.
  template <int TOKENS = BM, class Wait, class Release>
  __device__ void run(int n0, int first, int last, Wait&& wait, Release&& release, int more = 0) {
    if constexpr (!T::PROMOTES) {
      Sum(&sums)[TOKENS / 2] = reinterpret_cast<Sum(&)[TOKENS / 2]>(sum_);
      int before = -1;
      for (int block = first; block < last; ++block) {
        const int stage = wait();
        multiply<TOKENS, kSteps>(sums, codes_of(stage), tokens_of(stage), block > first);
        wgmma_wait<1>();
        if (before >= 0) release(before);
        before = stage;
      }
      if (more) {
        const int stage = wait();
        for (int s = 0; s < more; ++s) {
          multiply<TOKENS, 1>(sums, codes_of(stage) + 32 * s, tokens_of(stage) + 32 * s, (last > first) | s);
          wgmma_wait<0>();
        }
        if (before >= 0) release(before);
        before = stage;
      }
      wgmma_wait<0>();
      if (before >= 0) release(before);
      if (first >= last && !more) clear();
    } else {
      clear();
      for (int block = first; block < last; ++block) {
        float scale[2];
        if constexpr (T::BLOCKS) {
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int n = min(n0 + row(part), a_.N - 1);
            scale[part] = static_cast<const float*>(a_.scale)[n / a_.block_n * a_.scale_stride + block];
          }
        }
        const int stage = wait();
        if constexpr (T::BLOCKS) {
          Sum part_sum[BM / 2];
          multiply<BM, kSteps>(part_sum, codes_of(stage), tokens_of(stage), 0);
          wgmma_wait<0>();
#pragma unroll
          for (int j = 0; j < BM / 8; ++j) {
            float x[2];
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(x[0]), "=f"(x[1]) : "r"(scales_ + stage * T::kScales + 4 * (8 * j + 2 * t_)));
#pragma unroll
            for (int i = 0; i < 4; ++i) sum_[4 * j + i] = fmaf(part_sum[4 * j + i] * scale[i / 2], x[i % 2], sum_[4 * j + i]);
          }
          release(stage);
        } else {
          add_steps<TOKENS, kSteps>(stage, 0, release);
        }
      }
      if constexpr (!T::BLOCKS) {
        if (more) {
          const int stage = wait();
          for (int s = 0; s < more; ++s) add_steps<TOKENS, 1>(stage, s, [&](int done) { if (s == more - 1) release(done); });
        }
      }
    }
  }

  __device__ void store(int m0, int n0, uint32_t buffer) {
    const Feature<T> features[2] = {{a_, n0 + row(0)}, {a_, n0 + row(1)}};
    store_finished<1>(m0, n0, buffer,
                      [&](Sum sum, int token, int part) { return features[part].finished(sum, token_scale<T>(a_, m0 + token)); });
  }

  // finish(sum, token, part) is the result of a token of the tile and row(part). BUFFERS: as of store_tile.
  template <int BUFFERS, class Finish>
  __device__ void store_finished(int m0, int n0, uint32_t buffer, Finish&& finish) {
    if (a_.y_dtype == DType::f32 && BUFFERS == 2) {
      store_tile_f32<BM>(static_cast<float*>(a_.y), a_.M, a_.N, m0, n0 + warpgroup_ * 64, warpgroup_, buffer,
                         [&](int j, int part, int e) { return finish(sum_[4 * j + 2 * part + e], 8 * j + 2 * t_ + e, part); });
      return;
    }
    if (a_.y_dtype == DType::f32) {
#pragma unroll
      for (int i = 0; i < BM / 2; ++i) {
        const int token = i / 4 * 8 + 2 * t_ + i % 2, m = m0 + token, part = i / 2 % 2, n = n0 + row(part);
        if (m < a_.M && n < a_.N) static_cast<float*>(a_.y)[int64_t{m} * a_.N + n] = finish(sum_[i], token, part);
      }
      return;
    }
    const auto pair = [&](int j, int part) {
      const int token = 8 * j + 2 * t_;
      return pack_two(a_.y_dtype, finish(sum_[4 * j + 2 * part], token, part), finish(sum_[4 * j + 2 * part + 1], token + 1, part));
    };
    store_tile<BM, BUFFERS>(static_cast<uint16_t*>(a_.y), a_.M, a_.N, m0, n0 + warpgroup_ * 64, warpgroup_, buffer, pair);
  }

  // parts[token][row] of this CTA.
  __device__ void store_part(uint32_t parts) const {
#pragma unroll
    for (int i = 0; i < BM / 2; ++i) {
      const int token = i / 4 * 8 + 2 * t_ + i % 2;
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(parts + 4 * (token * T::kPitch + row(i / 2 % 2))),
                   "r"(*reinterpret_cast<const uint32_t*>(&sum_[i]))
                   : "memory");
    }
  }

  uint32_t ring_ = 0, scales_ = 0;  // where the stages lie, and the scales of their tokens

 private:
  __device__ uint32_t codes_of(int stage) const { return ring_ + stage * T::kStage; }
  __device__ uint32_t tokens_of(int stage) const { return codes_of(stage) + T::kCodes; }

  // The codes of this thread's rows, as wgmma wants them in registers.
  __device__ void load_codes(uint32_t (&held)[kSteps][4], uint32_t codes) const {
    const int r = warp_ * 16 + lane_ % 16;
    codes += (warpgroup_ * 64 + r) * kStageK;
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(held[s][0]), "=r"(held[s][1]), "=r"(held[s][2]), "=r"(held[s][3])
                   : "r"(codes + ((2 * s + lane_ / 16) ^ (r & 7)) * 16)
                   : "memory");
  }

  // Part sums of STEPS times 32 input features of a stage, added to sum_. Meanwhile the other warpgroup multiplies or, where parts are small enough for
  // two to be in registers, this one the next part.
  template <int TOKENS, int STEPS, class Release>
  __device__ void add_steps(int stage, int first, Release&& release) {
    constexpr int kPart = T::kPart, kParts = TOKENS / kPart, kTogether = kPart == 64 && kParts > 1 ? 2 : 1;
    constexpr bool kHeld = T::kHolds && STEPS == kSteps;
    const uint32_t codes = codes_of(stage) + 32 * first;
    uint32_t held[kHeld ? kSteps : 1][4];
    if constexpr (kHeld) load_codes(held, codes);
    Sum part_sum[kTogether][kPart / 2];
    const auto start = [&](int part) {
      const uint32_t tokens = tokens_of(stage) + part * kPart * kStageK + 32 * first;
      Sum(&sums)[kPart / 2] = part_sum[part % kTogether];
      if constexpr (kHeld) {
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) WgmmaHeld<typename T::Kind, kPart>::run(sums, held[s], b_descriptor(tokens + 32 * s), s);
        wgmma_commit();
      } else {
        multiply<kPart, STEPS>(sums, codes, tokens, 0);
      }
    };
    start(0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (kTogether == 2 && part + 1 < kParts) {
        start(part + 1);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      if (part == kParts - 1) release(stage);
#pragma unroll
      for (int i = 0; i < kPart / 2; ++i) sum_[part * kPart / 2 + i] += part_sum[part % kTogether][i];
      if (kTogether == 1 && part + 1 < kParts) start(part + 1);
    }
  }

  const ProductArgs& a_;
  int lane_, warp_, warpgroup_, t_, g_;
  Sum sum_[BM / 2];
};

// The sums of a tile, each CTA of the cluster a share of them.
template <class T>
__device__ void add_parts(const ProductArgs& a, uint32_t parts, int rank, Place at) {
  constexpr int kFours = T::kRows / 4, kAdders = 128 * T::CONSUMERS;
  for (int i = rank * kAdders + threadIdx.x; i < T::BM * kFours; i += a.split * kAdders) {
    const int m = at.m + i / kFours, n = at.n + i % kFours * 4;
    if (m >= a.M || n >= a.N) continue;
    const uint32_t from = parts + 4 * (i / kFours * T::kPitch + i % kFours * 4);
    typename T::Sum sum[4] = {};
    for (int r = 0; r < a.split; ++r) {
      const float4 part = load_remote(from, r);
      if constexpr (std::is_same_v<typename T::Sum, float>) {
        sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
      } else {
        sum[0] += __float_as_int(part.x), sum[1] += __float_as_int(part.y);
        sum[2] += __float_as_int(part.z), sum[3] += __float_as_int(part.w);
      }
    }
    const float x_scale = token_scale<T>(a, m);
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = Feature<T>(a, n + e).finished(sum[e], x_scale);
    const int64_t y = int64_t{m} * a.N + n;
    if (a.N % 4 == 0 && a.y_dtype != DType::f32) {
      const uint2 both{pack_two(a.y_dtype, v[0], v[1]), pack_two(a.y_dtype, v[2], v[3])};
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.y) + y) = both;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (n + e < a.N) store_value(a.y, a.y_dtype, y + e, v[e]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::CTAS)
byte_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map, const ProductArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u, buffer = ring + T::kRing;
  const uint32_t scales = buffer + T::kEpilogue, full = scales + STAGES * T::kScales, empty = full + 8 * STAGES;
  const int tiles_m = (a.M + T::BM - 1) / T::BM, tiles_n = (a.N + T::kRows - 1) / T::kRows, n_tiles = tiles_m * tiles_n;
  const int n_blocks = (a.K + kStageK - 1) / kStageK, per_split = (n_blocks + a.split - 1) / a.split;
  const int rank = blockIdx.x % a.split, first_tile = blockIdx.x / a.split, tile_step = gridDim.x / a.split;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * T::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == T::CONSUMERS) {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::kProducerRegisters));
    if (threadIdx.x == 128 * T::CONSUMERS) {
      int stage = 0, phase = 0, pending = 0;
      const auto load_codes = [&](Place at, int block) {
        barrier_wait(empty + 8 * stage, phase ^ 1);
        barrier_expect(full + 8 * stage, T::kStage + T::kScales);
        load_box(ring + stage * T::kStage, &codes_map, block * kStageK, at.n, full + 8 * stage);
      };
      const auto load_tokens = [&](Place at, int block, int s) {
        load_box(ring + s * T::kStage + T::kCodes, &x_map, block * kStageK, at.m, full + 8 * s);
        if constexpr (T::BLOCKS)
          load_bulk(scales + s * T::kScales, a.x_scale + int64_t{block} * a.x_scale_stride + at.m, T::kScales, full + 8 * s);
      };
      const Place begin = place_of<T>(first_tile, tiles_m, tiles_n);
      for (; pending < STAGES && first + pending < last; ++pending) {
        load_codes(begin, first + pending);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      wait_for_earlier_grids();
      let_later_grids_start();
      for (int i = 0; i < pending; ++i) load_tokens(begin, first + i, i);
      for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
        const Place at = place_of<T>(tile, tiles_m, tiles_n);
        for (int block = tile == first_tile ? first + pending : first; block < last; ++block) {
          load_codes(at, block);
          load_tokens(at, block, stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
    if (a.split > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::kConsumerRegisters));
    wait_for_earlier_grids();
    Consumer<T> consumer(a, warpgroup);
    consumer.ring_ = ring, consumer.scales_ = scales;
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
    Place at{};
    for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
      at = place_of<T>(tile, tiles_m, tiles_n);
      consumer.run(at.n, first, last, wait, release);
      if (a.split == 1) consumer.store(at.m, at.n, buffer);
    }
    if constexpr (T::kSplits) {
      if (a.split > 1) {
        asm volatile("bar.sync 3, %0;" ::"n"(128 * T::CONSUMERS) : "memory");  // the other warpgroup has read its last stage
        consumer.store_part(ring);
        cluster_sync();
        add_parts<T>(a, ring, rank, at);
        cluster_sync();  // the others may still read this CTA's memory
      }
    }
  }
#endif
}

}  // namespace ao::bytes
