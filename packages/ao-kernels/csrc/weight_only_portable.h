// Weight-only linear for every instruction set but AVX-512, in vectors of eight floats that the compiler maps to what
// there is (AVX2: one register; SSE2 and NEON: two).
//
// Eight codes, which always share a group, become eight float32 weights at once. A block of three rows x 512 weights then meets
// the tokens four at a time. Weights are (code - zero) * scale in float32: exact for bf16 scales and whole zero points.
#pragma once
#include "floats.h"
#include "isa.h"
#include "linear.h"
#include "parallel.h"
#include "scratch.h"

#if AO_ISA == AO_IS_avx2
#include <immintrin.h>
#endif

namespace ao::AO_ISA_NAMESPACE {

typedef float Float8 __attribute__((vector_size(32)));
typedef float Float8InMemory __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t Uint32x8 __attribute__((vector_size(32)));
typedef int32_t Int32x8 __attribute__((vector_size(32)));

constexpr int kRows = 3;
constexpr int kTokens = 4;
constexpr int kBlock = 512;
constexpr int64_t kPassTokens = 64;  // bounds the scratch and keeps activations in the second-level cache

// The B bytes of eight codes, without touching memory from `end` on.
template <int B>
[[gnu::always_inline]] inline uint64_t load_stream(const uint8_t* p, const uint8_t* end) {
  uint64_t stream = 0;
  if (p + 8 <= end) {
    std::memcpy(&stream, p, 8);
  } else {
    for (int i = 0; i < B && p + i < end; ++i) stream |= uint64_t{p[i]} << (8 * i);
  }
  return stream;
}

// Codes k..k+7 of a row as float.
template <int B>
[[gnu::always_inline]] inline Float8 load_codes(const uint8_t* row, int64_t k, const uint8_t* end) {
  constexpr int bits = B ? B : 8;
  const uint64_t stream = load_stream<bits>(row + k / 8 * bits, end);
#if AO_ISA == AO_IS_avx2
  if constexpr (B == 0) {
    const __m128i codes = _mm_cvtsi64_si128(static_cast<int64_t>(stream));
    return (Float8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  }
#endif
  // Four codes take at most 32 bits: one word for the first four, one for the others.
  const auto low = static_cast<uint32_t>(stream), high = static_cast<uint32_t>(stream >> 4 * bits);
  const Uint32x8 words = {low, low, low, low, high, high, high, high};
  if constexpr (B == 0) {  // the sign comes down from the top bit
    const Uint32x8 up = {24, 16, 8, 0, 24, 16, 8, 0};
    return __builtin_convertvector((Int32x8)(words << up) >> 24, Float8);
  }
  const Uint32x8 down = {0, bits, 2 * bits, 3 * bits, 0, bits, 2 * bits, 3 * bits};
  return __builtin_convertvector((Int32x8)((words >> down) & ((1u << bits) - 1)), Float8);
}

// Weights [begin, end) of row n, end at most K; written in whole vectors.
template <int B>
void dequantize(const LinearArgs& a, int64_t n, int64_t begin, int64_t end, float* out) {
  const uint8_t* row = a.codes + n * a.row_bytes;
  const uint8_t* tensor_end = a.codes + a.N * a.row_bytes;
  for (int64_t k = begin; k < end;) {
    const int64_t g = k / a.group_size, at = n * a.scale_stride + g;
    const int64_t stop = (g + 1) * a.group_size < end ? (g + 1) * a.group_size : end;
    const float scale = load_f32(a.scale, a.scale_dtype, at);
    const float zero = B == 0 ? 0.0f : a.zero ? load_f32(a.zero, a.scale_dtype, at) : 0.5f * (1 << B);
    for (; k < stop; k += 8)
      *reinterpret_cast<Float8InMemory*>(out + k - begin) = (load_codes<B>(row, k, tensor_end) - zero) * scale;
    k = stop;
  }
}

// sums[T][kRows] += T rows of x . kRows rows of w, n codes in whole vectors.
template <int T>
void multiply(const float* w, const float* x, int64_t x_stride, int64_t n, Float8* sums) {
  Float8 total[T][kRows];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) total[t][r] = sums[t * kRows + r];
  for (int64_t k = 0; k < n; k += 8) {
    Float8 weights[kRows];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) weights[r] = *reinterpret_cast<const Float8InMemory*>(w + r * kBlock + k);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const Float8 activations = *reinterpret_cast<const Float8InMemory*>(x + t * x_stride + k);
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) total[t][r] += weights[r] * activations;
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) sums[t * kRows + r] = total[t][r];
}

// Tokens [m, m + n_tokens), their x as float32 rows x_stride apart, times weight rows [begin, end), at most kRows.
template <int B>
void portable_rows(const LinearArgs& a, const float* x, int64_t x_stride, int64_t m, int64_t n_tokens,
                   int64_t begin, int64_t end) {
  alignas(64) float w[kRows * kBlock];
  alignas(64) Float8 sums[kPassTokens * kRows];
  for (int64_t i = 0; i < n_tokens * kRows; ++i) sums[i] = Float8{};
  for (int64_t k = 0; k < a.K; k += kBlock) {
    const int64_t stop = k + kBlock < a.K ? k + kBlock : a.K;
    const int64_t n = (stop - k + 7) / 8 * 8;
    for (int r = 0; r < kRows; ++r)  // rows behind the last repeat it and are not stored
      dequantize<B>(a, begin + r < end ? begin + r : end - 1, k, stop, w + r * kBlock);
    for (int64_t t = 0; t < n_tokens; t += kTokens) {
      const float* from = x + t * x_stride + k;
      Float8* to = sums + t * kRows;
      switch (n_tokens - t) {
        case 1: multiply<1>(w, from, x_stride, n, to); break;
        case 2: multiply<2>(w, from, x_stride, n, to); break;
        case 3: multiply<3>(w, from, x_stride, n, to); break;
        default: multiply<4>(w, from, x_stride, n, to);
      }
    }
  }
  for (int64_t t = 0; t < n_tokens; ++t)
    for (int64_t n = begin; n < end; ++n) {
      const Float8 s = sums[t * kRows + n - begin];
      const float y = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
      const float bias = a.bias ? load_f32(a.bias, a.bias_dtype, n) : 0.0f;
      store_f32(a.y, a.x_dtype, (m + t) * a.N + n, y + bias);
    }
}

template <int B>
void portable_linear(const LinearArgs& a) {
  const int64_t x_stride = (a.K + 7) / 8 * 8 + 16;  // rows a power of two apart would share cache sets
  for (int64_t m = 0; m < a.M; m += kPassTokens) {
    const int64_t n_tokens = m + kPassTokens < a.M ? kPassTokens : a.M - m;
    auto* x = static_cast<float*>(scratch(0, n_tokens * x_stride * sizeof(float)));
    for (int64_t t = 0; t < n_tokens; ++t) {
      float* row = x + t * x_stride;
      for (int64_t k = 0; k < a.K; ++k) row[k] = load_f32(a.x, a.x_dtype, (m + t) * a.x_stride + k);
      for (int64_t k = a.K; k < x_stride; ++k) row[k] = 0.0f;
    }
    const int64_t least = (1 << 16) / (a.K * n_tokens) + 1;
    const int64_t even = a.N / (a.n_threads * 8) + 1;
    const int64_t grain = ((even > least ? even : least) + kRows - 1) / kRows * kRows;
    parallel_for(a.N, grain, a.n_threads, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n += kRows)
        portable_rows<B>(a, x, x_stride, m, n_tokens, n, n + kRows < end ? n + kRows : end);
    });
  }
}

}  // namespace ao::AO_ISA_NAMESPACE
