// What int8_product_portable.h needs of an instruction set: dot products of kLaneCodes weight codes with as many token
// codes at a time, exact in int32 lanes.
#pragma once
#include <cstdint>

#include "isa.h"
#if AO_ISA == AO_IS_avx2 || AO_ISA == AO_IS_avx512
#include <immintrin.h>
#elif AO_ISA == AO_IS_neon
#include <arm_neon.h>
#endif

namespace ao::AO_ISA_NAMESPACE {
namespace {

constexpr int kLaneCodes = 16;

#if AO_ISA == AO_IS_avx2

// Weight codes are int16: vpmaddubsw, which takes bytes, saturates for 8-bit codes.
using Code = int16_t;
using Codes = __m256i;
using Dots = __m256i;
using Sums = __m256;

inline Codes load_codes(const Code* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Codes load_token(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Dots no_dots() { return _mm256_setzero_si256(); }
inline Sums no_sums() { return _mm256_setzero_ps(); }
inline Dots add_dot(Dots dots, Codes a, Codes b) { return _mm256_add_epi32(dots, _mm256_madd_epi16(a, b)); }
inline Sums add_scaled(Sums sums, Dots dots, float scale) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(scale), sums);
}
inline float total(Sums sums) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#elif AO_ISA == AO_IS_neon

using Code = int8_t;
using Codes = int8x16_t;
using Dots = int32x4_t;
using Sums = float32x4_t;

inline Codes load_codes(const Code* p) { return vld1q_s8(p); }
inline Codes load_token(const int8_t* p) { return vld1q_s8(p); }
inline Dots no_dots() { return vdupq_n_s32(0); }
inline Sums no_sums() { return vdupq_n_f32(0.0f); }
inline Dots add_dot(Dots dots, Codes a, Codes b) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(dots, a, b);
#else
  dots = vpadalq_s16(dots, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  return vpadalq_s16(dots, vmull_high_s8(a, b));
#endif
}
inline Sums add_scaled(Sums sums, Dots dots, float scale) {
  return vfmaq_n_f32(sums, vcvtq_f32_s32(dots), scale);
}
inline float total(Sums sums) { return vaddvq_f32(sums); }

#else

// Fixed trip counts, so that a compiler vectorises.
using Code = int16_t;
struct Codes {
  int16_t at[kLaneCodes];
};
struct Dots {
  int32_t at[kLaneCodes];
};
struct Sums {
  float at[kLaneCodes];
};

inline Codes load_codes(const Code* p) {
  Codes codes;
  for (int i = 0; i < kLaneCodes; ++i) codes.at[i] = p[i];
  return codes;
}
inline Codes load_token(const int8_t* p) {
  Codes codes;
  for (int i = 0; i < kLaneCodes; ++i) codes.at[i] = p[i];
  return codes;
}
inline Dots no_dots() { return {}; }
inline Sums no_sums() { return {}; }
inline Dots add_dot(Dots dots, const Codes& a, const Codes& b) {
  for (int i = 0; i < kLaneCodes; ++i) dots.at[i] += int32_t{a.at[i]} * b.at[i];
  return dots;
}
inline Sums add_scaled(Sums sums, const Dots& dots, float scale) {
  for (int i = 0; i < kLaneCodes; ++i) sums.at[i] += static_cast<float>(dots.at[i]) * scale;
  return sums;
}
inline float total(const Sums& sums) {
  float all = 0.0f;
  for (int i = 0; i < kLaneCodes; ++i) all += sums.at[i];
  return all;
}

#endif

// Eight codes of b bits in the low 8 * b bits of `word`, minus the middle code.
inline void spread_eight(uint64_t word, int bits, Code* out) {
  const int middle = 1 << (bits - 1);
#ifdef __BMI2__
  const uint64_t bytes = _pdep_u64(word, ((uint64_t{1} << bits) - 1) * 0x0101010101010101u);
  const __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_sub_epi16(wide, _mm_set1_epi16(static_cast<int16_t>(middle))));
#else
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int i = 0; i < 8; ++i)
    out[i] = static_cast<Code>(static_cast<int>(word >> (i * bits) & mask) - middle);
#endif
}

}  // namespace
}  // namespace ao::AO_ISA_NAMESPACE
