// int8 tokens times integer weights: what the int8_dynamic_* kernels share.
//
//   y[m, n] = s[m] * sum_g scale[n, g] * sum_{k in g} (c[n, k] - zero[n, g]) * (q[m, k] - z[m]) + bias[n]
//
// q, s, z are a token's codes, scale and zero (int8_tokens.h). The products of codes are summed exactly in int32. They
// are taken with q alone, and z[m] times the row's sum of w is subtracted at the end; that sum is what a
// token of ones gives, so one more token of ones is multiplied where tokens have zeros.
//
// K is cut into segments that lie in one group and hold at most kSegment codes: the int32 sum of a segment is then exact in
// float32 (512 * 255 * 128 < 2**24), and no K is too long.
#pragma once
#include <cstdint>

#include "isa.h"
#include "linear.h"

namespace ao {

#ifdef AO_ISA_NAMESPACE
namespace AO_ISA_NAMESPACE {

LinearKernel int8_product_symmetric;   // z = 0
LinearKernel int8_product_asymmetric;

namespace {

constexpr int64_t kSegment = 512;
constexpr int kBlockRows = 32;  // output features that a thread works on at a time

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Segments {
  int64_t K, group_size, per_group, count;

  explicit Segments(const LinearArgs& a)
      : K(a.K), group_size(a.group_size), per_group((a.group_size + kSegment - 1) / kSegment) {
    const int64_t last = K - (a.G - 1) * group_size;
    count = (a.G - 1) * per_group + (last + kSegment - 1) / kSegment;
  }
  int64_t group(int64_t s) const { return s / per_group; }
  bool opens_group(int64_t s) const { return s % per_group == 0; }
  int64_t begin(int64_t s) const { return group(s) * group_size + s % per_group * kSegment; }
  int64_t end(int64_t s) const {
    return min_of(begin(s) + kSegment, min_of((group(s) + 1) * group_size, K));
  }
};

// The tokens of one pass over the weight, and behind them a row of ones where tokens have zeros.
struct Tokens {
  int64_t count;         // rows of codes
  int64_t stride;        // codes from one row to the next
  int64_t n_sums;        // group sums from one row to the next: G rounded up to 16, zero-filled
  int8_t* codes;         // (count, stride); zeros from K on
  int32_t* segment_sums; // (count, segments): sum of codes
  float* group_sums;     // (count, n_sums): sum of codes
  float* scale;          // (count)
  float* zero;           // (count)
};

// Codes of a weight as unsigned integers: bits and the value that means 0 (for int8 codes after adding 128).
inline int code_bits(const LinearArgs& a) { return a.bits ? a.bits : 8; }
inline int middle(const LinearArgs& a) { return 1 << (code_bits(a) - 1); }

}  // namespace
}  // namespace AO_ISA_NAMESPACE
#endif

}  // namespace ao
