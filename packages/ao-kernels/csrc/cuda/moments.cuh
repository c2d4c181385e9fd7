// Eight moments of a thread: codes to values and back, bit for bit ao_core/moments.py. A product is rounded before it is added to
// anything: __fmul_rn and __fadd_rn are never fused.
#pragma once
#include <cuda_fp8.h>

#include "optimizer_step.h"

namespace ao {

// Codes of eight elements, or eight float32.
template <MomentFormat F>
struct Codes {
  static constexpr int kWords = F == MomentFormat::full ? 8 : F == MomentFormat::bits4 ? 1 : 2;
  uint32_t word[kWords];
};

constexpr uint32_t kHighs = 0x7632;  // __byte_perm: upper halves of two words, the first one's below

__device__ inline uint32_t shifted(uint32_t x, int left) { return left >= 0 ? x << left : x >> -left; }

// The value of a code times its scale. f: sign, exponent, the bits of the code's cell and where in it the value is. A negative code of zero is -0.
template <MomentFormat F, bool SIGNED>
__device__ inline float value_of(uint32_t f, float scale) {
  constexpr float kBias = kCompanding<F, SIGNED>.bias;
  if (!SIGNED) return __fmul_rn(__fadd_rn(__uint_as_float(f), -kBias), scale);
  const float size = __fmul_rn(__fadd_rn(fabsf(__uint_as_float(f)), -kBias), scale);
  return __uint_as_float(__float_as_uint(size) | (f & 0x80000000u));
}

template <MomentFormat F, bool SIGNED>
__device__ inline void decode(const Codes<F>& codes, float scale, float (&x)[8]) {
  constexpr Companding map = kCompanding<F, SIGNED>;
  constexpr uint32_t kCode = ((1u << map.width) - 1) << (7 - map.cell_bits), kBoth = kCode << 16 | kCode;
  constexpr uint32_t kFirst = (kTwo + kToValue<F, SIGNED>) >> 16, kFirsts = kFirst << 16 | kFirst;
  constexpr uint32_t kSigns = 0x80008000u;
  if constexpr (F == MomentFormat::full) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = __uint_as_float(codes.word[i]);
  } else if constexpr (F == MomentFormat::e4m3) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const auto pair = static_cast<__nv_fp8x2_storage_t>(codes.word[i / 4] >> i % 4 * 8);
      const float2 both = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
      x[i] = __fmul_rn(both.x, scale);
      x[i + 1] = __fmul_rn(both.y, scale);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The f of two codes lie in the halves of a word, like bfloat16, if their distance is 16 bits: elements j and j + 2 of a word of bytes, j and j + 4 of one of nibbles.
      constexpr bool kBytes = F == MomentFormat::bits8;
      const uint32_t word = codes.word[kBytes ? i / 2 : 0];
      const int first = kBytes ? i % 2 * 8 : i * 4;  // bit of the lower code
      uint32_t f = (shifted(word, 7 - map.cell_bits - first) & kBoth) | kFirsts;
      if (SIGNED) f |= shifted(word, 15 - map.width - first) & kSigns;
      const int low = kBytes ? i / 2 * 4 + i % 2 : i, high = low + (kBytes ? 2 : 4);
      x[low] = value_of<F, SIGNED>(f << 16, scale);
      x[high] = value_of<F, SIGNED>(f & 0xffff0000u, scale);
    }
  }
}

// DITHERED: `word_of_first` is that of the first element.
template <MomentFormat F, bool SIGNED, bool DITHERED>
__device__ inline Codes<F> encode(const float (&x)[8], float inv_scale, uint32_t word_of_first) {
  constexpr Companding map = kCompanding<F, SIGNED>;
  constexpr uint32_t kCode = (1u << map.width) - 1, kBoth = kCode << 16 | kCode, kSigns = (kCode + 1) << 16 | (kCode + 1);
  Codes<F> codes = {};
  if constexpr (F == MomentFormat::full) {
#pragma unroll
    for (int i = 0; i < 8; ++i) codes.word[i] = __float_as_uint(x[i]);
  } else if constexpr (F == MomentFormat::e4m3) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      float2 both = {__fmul_rn(x[i], inv_scale), __fmul_rn(x[i + 1], inv_scale)};
      if (!SIGNED) both = {fmaxf(both.x, kSmallestE4m3), fmaxf(both.y, kSmallestE4m3)};
      codes.word[i / 4] |= static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(both, __NV_SATFINITE, __NV_E4M3)) << i % 4 * 8;
    }
  } else {
    uint32_t f[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float size = SIGNED ? fabsf(x[i]) : x[i];
      f[i] = __float_as_uint(__fadd_rn(__fmul_rn(size, inv_scale), map.bias));
      f[i] += DITHERED ? (word_of_first + i * kDitherOfElement * kDitherOf<SIGNED>) >> (9 + map.cell_bits) : kToNearest<F, SIGNED>;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      constexpr bool kBytes = F == MomentFormat::bits8;
      uint32_t& word = codes.word[kBytes ? i / 2 : 0];
      const int first = kBytes ? i % 2 * 8 : i * 4;
      const int low = kBytes ? i / 2 * 4 + i % 2 : i, high = low + (kBytes ? 2 : 4);
      uint32_t both = __byte_perm(f[low], f[high], kHighs);
      if (map.bias < 2) both = __vmaxs2(both, kTwo | kTwo >> 16);
      word |= shifted(both, first - (7 - map.cell_bits)) & kBoth << first;
      if (SIGNED) {
        const uint32_t signs = __byte_perm(__float_as_uint(x[low]), __float_as_uint(x[high]), kHighs);
        word |= shifted(signs, first - (15 - map.width)) & kSigns << first;
      }
    }
  }
  return codes;
}

// Bits of |x| of the largest element of a thread; they order like magnitudes, with inf and then NaN above all others.
__device__ inline uint32_t peak_of_eight(const float (&x)[8]) {
  uint32_t peak = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) peak = max(peak, __float_as_uint(x[i]) & 0x7fffffffu);
  return peak;
}

// The scale of a block by its peak: NaN where that is not finite.
template <MomentFormat F, bool SIGNED, bool DITHERED>
__device__ inline float moment_scale(uint32_t peak) {
  const float scale = fmaxf(__fmul_rn(__uint_as_float(peak), kInvTop<F, SIGNED, DITHERED>), 0x1p-126f);
  return peak < 0x7f800000u ? scale : __uint_as_float(0x7fc00000u);
}

}  // namespace ao
