// How a CTA multiplies 8-bit codes on Hopper: what its tile is, and the warpgroups that multiply one and store it. byte_product.cuh says how the
// operands come there, for linears, and grouped_products.cuh for products of experts in training.
#pragma once
#include <type_traits>

#include "cuda/floats.cuh"
#include "cuda/tile_store.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace ao::bytes {

using namespace ao::large;

constexpr int kStageK = 128;     // input features a stage: the bytes of a row under the swizzle

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

  // Part sums of STEPS times 32 input features of a stage, added to sum_. Meanwhile the other warpgroup multiplies.
  template <int TOKENS, int STEPS, class Release>
  __device__ void add_steps(int stage, int first, Release&& release) {
    constexpr int kPart = T::kPart, kParts = TOKENS / kPart;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Sum part_sum[kPart / 2];
      multiply<kPart, STEPS>(part_sum, codes_of(stage) + 32 * first, tokens_of(stage) + part * kPart * kStageK + 32 * first, 0);
      wgmma_wait<0>();
      if (part == kParts - 1) release(stage);
#pragma unroll
      for (int i = 0; i < kPart / 2; ++i) sum_[part * kPart / 2 + i] += part_sum[i];
    }
  }

  const ProductArgs& a_;
  int lane_, warp_, warpgroup_, t_, g_;
  Sum sum_[BM / 2];
};

}  // namespace ao::bytes
