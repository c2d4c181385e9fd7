// int8_product for every instruction set but AVX-512: kPair rows at a time are unpacked to centred codes (code - middle), each
// segment padded with zeros to whole lanes, and meet kPair tokens at a time.
#pragma once
#include <cstring>

#include "floats.h"
#include "int8_lanes.h"
#include "int8_product.h"

namespace ao::AO_ISA_NAMESPACE {
namespace {

constexpr int64_t kTokenUnit = kLaneCodes;
constexpr int kPair = 2;

// Codes [begin, end) of a row, begin a multiple of 8, padded with zeros to whole lanes; returns what is behind.
inline Code* unpack_segment(const LinearArgs& a, const uint8_t* row, int64_t begin, int64_t end, Code* out) {
  const int64_t length = end - begin;
  if (a.bits == 0) {
    for (int64_t k = 0; k < length; ++k) out[k] = static_cast<int8_t>(row[begin + k]);
  } else {
    const uint8_t* unit = row + begin / 8 * a.bits;
    for (int64_t k = 0; k < length; k += 8, unit += a.bits) {
      uint64_t word = 0;
      for (int i = 0; i < a.bits; ++i) word |= uint64_t{unit[i]} << (8 * i);
      spread_eight(word, a.bits, out + k);
    }
  }
  Code* const stop = out + round_up(length, kLaneCodes);
  for (Code* p = out + length; p < stop; ++p) *p = 0;
  return stop;
}

struct Row {
  const Code* codes;   // all segments
  const float* scale;  // (segments)
  const float* shift;  // (groups) (zero - middle) * scale, or nullptr
};

// acc[t][r] of R rows and T tokens from t0 on.
template <int R, int T>
void multiply(const LinearArgs& a, const Tokens& x, const Segments& segments, const Row* rows, int64_t t0, float* acc) {
  Sums sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = no_sums();
  int64_t at = 0;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t begin = segments.begin(s), length = segments.end(s) - begin;
    const int8_t* const token = x.codes + t0 * x.stride + begin;
    Dots dots[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) dots[r][t] = no_dots();
    for (int64_t k = 0; k < length; k += kLaneCodes, at += kLaneCodes) {
      Codes w[R];
      for (int r = 0; r < R; ++r) w[r] = load_codes(rows[r].codes + at);
      for (int t = 0; t < T; ++t) {
        const Codes q = load_token(token + t * x.stride + k);
        for (int r = 0; r < R; ++r) dots[r][t] = add_dot(dots[r][t], w[r], q);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) sums[r][t] = add_scaled(sums[r][t], dots[r][t], rows[r].scale[s]);
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      float sum = total(sums[r][t]);
      if (a.zero) {
        const float* const q_sums = x.group_sums + (t0 + t) * x.n_sums;
        for (int64_t g = 0; g < a.G; ++g) sum -= rows[r].shift[g] * q_sums[g];
      }
      acc[(t0 + t) * kBlockRows + r] = sum;
    }
}

class Product {
 public:
  Product(const LinearArgs& a, const Segments& segments, int64_t)
      : codes_(a.K + kLaneCodes * segments.count), scales_(segments.count + a.G) {}

  size_t scratch_bytes() const {
    return static_cast<size_t>(
        round_up(kPair * (codes_ * int64_t{sizeof(Code)} + scales_ * int64_t{sizeof(float)}), 64));
  }

  void sum_segments(const int8_t* codes, const Segments& segments, int32_t*, float* by_group) const {
    for (int64_t s = 0; s < segments.count; ++s) {
      int32_t sum = 0;
      for (int64_t k = segments.begin(s); k < segments.end(s); ++k) sum += codes[k];
      by_group[segments.group(s)] += static_cast<float>(sum);
    }
  }

  void order_codes(int8_t*, int64_t) const {}

  void block(const LinearArgs& a, const Tokens& x, const Segments& segments, int64_t n, int n_rows, int64_t,
             char* memory, float* acc) const {
    auto* const floats = reinterpret_cast<float*>(memory);
    auto* const codes = reinterpret_cast<Code*>(floats + kPair * scales_);
    for (int r = 0; r < n_rows; r += kPair) {
      Row rows[kPair];
      const int pair = n_rows - r < kPair ? n_rows - r : kPair;
      for (int i = 0; i < pair; ++i)
        rows[i] = read_row(a, segments, n + r + i, codes + i * codes_, floats + i * scales_);
      int64_t t = 0;
      if (pair == kPair) {
        for (; t + kPair <= x.count; t += kPair) multiply<kPair, kPair>(a, x, segments, rows, t, acc + r);
        for (; t < x.count; ++t) multiply<kPair, 1>(a, x, segments, rows, t, acc + r);
      }
      for (; t < x.count; ++t) multiply<1, 1>(a, x, segments, rows, t, acc + r);
    }
  }

 private:
  static Row read_row(const LinearArgs& a, const Segments& segments, int64_t n, Code* codes, float* scales) {
    const uint8_t* const row = a.codes + n * a.row_bytes;
    float* const shift = scales + segments.count;
    Code* out = codes;
    for (int64_t s = 0; s < segments.count; ++s) {
      out = unpack_segment(a, row, segments.begin(s), segments.end(s), out);
      scales[s] = load_f32(a.scale, a.scale_dtype, n * a.scale_stride + segments.group(s));
    }
    for (int64_t g = 0; a.zero && g < a.G; ++g) {
      const int64_t at = n * a.scale_stride + g;
      shift[g] = (load_f32(a.zero, a.scale_dtype, at) - static_cast<float>(middle(a))) *
                 load_f32(a.scale, a.scale_dtype, at);
    }
    return {codes, scales, shift};
  }

  int64_t codes_, scales_;  // of a row
};

// y = (acc - zero * ones) * scale + bias; `ones` is what the token of ones gave, or nullptr.
void store_block(const LinearArgs& a, const Tokens& x, int64_t m0, int64_t n_tokens, int64_t n, int rows,
                 const float* ones, const float* acc) {
  for (int64_t t = 0; t < n_tokens; ++t)
    for (int r = 0; r < rows; ++r) {
      const float one = ones ? x.zero[t] * ones[r] : 0.0f;
      const float bias = a.bias ? load_f32(a.bias, a.bias_dtype, n + r) : 0.0f;
      store_f32(a.y, a.x_dtype, (m0 + t) * a.N + n + r, (acc[t * kBlockRows + r] - one) * x.scale[t] + bias);
    }
}

void prefetch_block(const LinearArgs&, int64_t, int64_t, int64_t) {}

}  // namespace
}  // namespace ao::AO_ISA_NAMESPACE
