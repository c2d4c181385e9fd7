// Weight-only linear in plain C++: written so that a compiler vectorises it, for every instruction set but AVX-512.
//
// A group's codes of one weight row become float32, then meet every token in kLanes independent sums.
#pragma once
#include "floats.h"
#include "isa.h"
#include "linear.h"
#include "parallel.h"
#include "scratch.h"

namespace ao::AO_ISA_NAMESPACE {

constexpr int kLanes = 32;

// Codes [0, n) of the bit stream at p, minus the middle code; n is a multiple of 8 but at the end of a row.
template <int B>
void unpack_codes(const uint8_t* p, int64_t n, float* out) {
  if constexpr (B == 0) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(static_cast<int8_t>(p[k]));
  } else if constexpr (B == 8) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<float>(static_cast<int>(p[k]) - 128);
  } else if constexpr (B == 4) {
    for (int64_t k = 0; k < n / 2; ++k) {
      out[2 * k] = static_cast<float>((p[k] & 15) - 8);
      out[2 * k + 1] = static_cast<float>((p[k] >> 4) - 8);
    }
    if (n % 2) out[n - 1] = static_cast<float>((p[n / 2] & 15) - 8);
  } else {
    for (int64_t k = 0; k < n; k += 8) {
      uint64_t word = 0;
      for (int i = 0; i < B; ++i) word |= uint64_t{p[k / 8 * B + i]} << (8 * i);
      const int64_t count = n - k < 8 ? n - k : 8;
      for (int64_t i = 0; i < count; ++i)
        out[k + i] = static_cast<float>(static_cast<int>(word >> (B * i) & ((1 << B) - 1)) - (1 << (B - 1)));
    }
  }
}

inline float dot(const float* a, const float* b, int64_t n) {
  float sums[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes)
    for (int i = 0; i < kLanes; ++i) sums[i] += a[k + i] * b[k + i];
  for (; k < n; ++k) sums[k % kLanes] += a[k] * b[k];
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  return sums[0];
}

// Tokens [m_begin, m_end), x as f32 rows of K, sums of its groups (or nullptr), weight row n.
template <int B>
void portable_row(const LinearArgs& a, const float* x, const float* x_sums, int64_t m_begin, int64_t m_end,
                  int64_t n, float* w, float* y) {
  constexpr float middle = B == 0 ? 0.0f : static_cast<float>(1 << (B > 0 ? B - 1 : 0));
  const float bias = a.bias ? load_f32(a.bias, a.bias_dtype, n) : 0.0f;
  unpack_codes<B>(a.codes + n * a.row_bytes, a.K, w);
  for (int64_t m = m_begin; m < m_end; ++m) y[m - m_begin] = bias;
  for (int64_t g = 0; g < a.G; ++g) {
    const int64_t at = n * a.scale_stride + g, k = g * a.group_size;
    const int64_t length = k + a.group_size < a.K ? a.group_size : a.K - k;
    const float scale = load_f32(a.scale, a.scale_dtype, at);
    const float zero = a.zero ? load_f32(a.zero, a.scale_dtype, at) - middle : 0.0f;
    for (int64_t m = 0; m < m_end - m_begin; ++m) {
      float sum = dot(x + m * a.K + k, w + k, length);
      if (a.zero) sum -= zero * x_sums[m * a.G + g];
      y[m] += scale * sum;
    }
  }
  for (int64_t m = m_begin; m < m_end; ++m) store_f32(a.y, a.x_dtype, m * a.N + n, y[m - m_begin]);
}

template <int B>
void portable_linear(const LinearArgs& a) {
  constexpr int64_t kTokens = 64;  // a pass: bounds the scratch, and x stays in a cache
  for (int64_t m = 0; m < a.M; m += kTokens) {
    const int64_t m_end = m + kTokens < a.M ? m + kTokens : a.M;
    auto* x = static_cast<float*>(scratch(0, (m_end - m) * a.K * sizeof(float)));
    auto* x_sums = static_cast<float*>(scratch(1, (m_end - m) * a.G * sizeof(float)));
    for (int64_t i = 0; i < m_end - m; ++i) {
      for (int64_t k = 0; k < a.K; ++k)
        x[i * a.K + k] = load_f32(a.x, a.x_dtype, (m + i) * a.x_stride + k);
      for (int64_t g = 0; g < a.G; ++g) {
        float sum = 0.0f;
        for (int64_t k = g * a.group_size; k < a.K && k < (g + 1) * a.group_size; ++k) sum += x[i * a.K + k];
        x_sums[i * a.G + g] = sum;
      }
    }
    parallel_for(a.N, 8, a.n_threads, [&](int64_t begin, int64_t end) {
      auto* w = static_cast<float*>(scratch(3, a.K * sizeof(float)));
      auto* y = static_cast<float*>(scratch(4, (m_end - m) * sizeof(float)));
      for (int64_t n = begin; n < end; ++n) portable_row<B>(a, x, x_sums, m, m_end, n, w, y);
    });
  }
}

}  // namespace ao::AO_ISA_NAMESPACE
