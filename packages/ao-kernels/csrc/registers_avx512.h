// What the AVX-512 kernels share: masks, loads and stores of 16 numbers of any dtype, and a transposition.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "types.h"

namespace ao::avx512 {

// The lowest n bits; none below 0, all from 64 on.
inline __mmask64 low_bits(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : n <= 0 ? 0 : (__mmask64{1} << n) - 1;
}

// Up to 16 f32, bf16 or f16 as f32, 0 outside the mask.
inline __m512 load_16(const void* data, DType dtype, int64_t at, __mmask16 mask) {
  switch (dtype) {
    case DType::bf16:
      return _mm512_castsi512_ps(_mm512_slli_epi32(
          _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + at)), 16));
    case DType::f16:
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + at));
    default: return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + at);
  }
}

// Rounds to nearest even.
inline void store_16(void* data, DType dtype, int64_t at, __mmask16 mask, __m512 v) {
  switch (dtype) {
    case DType::bf16: {
      // Not vcvtneps2bf16, which flushes subnormal results to zero.
      const __m512i bits = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
      rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                                     _mm512_set1_epi32(0x400000));
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(data) + at, mask,
                               _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
      break;
    }
    case DType::f16:
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(data) + at, mask,
                               _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
      break;
    default: _mm512_mask_storeu_ps(static_cast<float*>(data) + at, mask, v);
  }
}

// r[i] lane j <-> r[j] lane i of 16 registers of 32-bit lanes.
inline __attribute__((always_inline)) void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

}  // namespace ao::avx512
