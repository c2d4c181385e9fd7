// Weight codes to bf16 in AVX-512 registers, 128 codes ("a chunk") at a time, for every width.
//
// Widths B: 1..8 packed unsigned codes, 0 int8 codes. A chunk becomes four registers ("steps") of 32 bf16, each
// exactly code - 2**(B-1) (int8: code). The order inside a chunk is whatever unpacks fastest;
// code_at<B>(step, lane) tells which code a lane holds, and activations are put in the same order once a
// call. In every width the two codes of a 32-bit pair lie in the same run of eight codes, and eight codes lie
// in one group: a 32-bit lane of a dot product never mixes groups within a "unit" of steps.
//
// vpermw looks up 32 bf16 by the low five bits of 16-bit lanes: a code needs no masking when the
// table repeats for the bits above it. vpmultishiftqb brings any bit offset of a 64-bit word to a byte.
#pragma once
#include "registers_avx512.h"

namespace ao::avx512 {

constexpr int kChunk = 128;

template <int B>
constexpr int chunk_bytes = B == 0 ? kChunk : 16 * B;

// Steps whose 32-bit lane i holds codes of one run of eight: one scale vector serves a unit.
template <int B>
constexpr int unit_steps = B == 0 || B == 8 ? 1 : B >= 5 ? 2 : 4;

template <int B>
constexpr int code_at(int step, int lane) {
  const int q = lane / 4, l = lane % 4;  // 64-bit word, 16-bit lane in it
  if (B == 0 || B == 8) return 32 * step + lane;
  if (B >= 5) return 64 * (step / 2) + 8 * q + 2 * l + step % 2;
  if (B == 1) return 64 * (q % 2) + 16 * (q / 2) + 4 * l + step;
  if (B == 2) return 32 * (q % 4) + 16 * (q / 4) + 4 * l + step;
  return 4 * lane + step;
}

constexpr uint16_t bf16_of(int value) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(value)) >> 16);
}

template <int B>
struct CodeTables {
  alignas(64) uint16_t values[4][32] = {};    // vpermw tables; which one serves which step: see Codes
  alignas(64) uint8_t shifts[4][64] = {};     // vpmultishiftqb controls a step
  alignas(64) uint8_t bytes[64] = {};         // vpermb: byte i of a 64-bit word q is byte q * width + i
  alignas(64) uint16_t upper[32] = {};        // vpermt2w: the upper halves of two registers of 32-bit lanes

  constexpr CodeTables() {
    constexpr int middle = B == 0 ? 0 : 1 << (B - 1 > 0 ? B - 1 : 0);
    for (int e = 0; e < 32; ++e) {
      upper[e] = static_cast<uint16_t>(2 * e + 1);
      for (int t = 0; t < 4; ++t) {
        int code = 0;
        if (B == 1) code = e >> t & 1;                 // table t reads bit t
        else if (B == 2) code = e >> (2 * (t % 2)) & 3;  // tables 0 and 1 read one half each
        else if (B <= 5) code = e & ((1 << B) - 1);
        else code = 32 * t + e;                        // four tables in sequence
        values[t][e] = bf16_of(code - middle);
      }
    }
    for (int i = 0; i < 64; ++i) {
      const int q = i / 8, l = i % 8 / 2;
      const int word = B >= 5 ? B : 2 * B;  // bytes in use of a 64-bit word
      bytes[i] = static_cast<uint8_t>(q * word + i % 8);
      for (int s = 0; s < 4; ++s) {
        int offset = B * (4 * l + s);
        if (B == 1) offset = 16 * (q / 2) + 4 * l;
        if (B == 2) offset = 2 * (16 * (q / 4) + 4 * l + s / 2 * 2);
        if (B >= 5) offset = B * (2 * l + s % 2);
        shifts[s][i] = static_cast<uint8_t>(offset % 64);
      }
    }
  }
};

template <int B>
inline constexpr CodeTables<B> kCodeTables{};

// Which bytes of a chunk exist: a mask for each 64 of them.
struct ChunkMask {
  __mmask64 first, second;
};

inline ChunkMask chunk_mask(int64_t bytes) { return {low_bits(bytes), low_bits(bytes - 64)}; }

template <int B>
class Codes {
 public:
  // w[0..3]: the chunk at p. Without Full only bytes in the mask are touched; others count as 0.
  template <bool Full>
  static void unpack(const uint8_t* p, ChunkMask mask, __m512i w[4]) {
    if constexpr (B == 0 || B == 8) {
      for (int s = 0; s < 4; ++s) {
        const __m512 low = widen<Full>(p + 32 * s, byte_mask(mask, 32 * s));
        const __m512 high = widen<Full>(p + 32 * s + 16, byte_mask(mask, 32 * s + 16));
        w[s] = _mm512_permutex2var_epi16(_mm512_castps_si512(low), load(kCodeTables<B>.upper),
                                         _mm512_castps_si512(high));
      }
    } else if constexpr (B >= 5) {
      for (int half = 0; half < 2; ++half) {
        constexpr __mmask64 whole = (__mmask64{1} << (8 * B)) - 1;
        const __mmask64 bytes = Full ? whole : whole & window(mask, 8 * B * half);
        __m512i v = _mm512_maskz_loadu_epi8(bytes, p + 8 * B * half);
        v = _mm512_permutexvar_epi8(load(kCodeTables<B>.bytes), v);
        for (int s = 0; s < 2; ++s)
          w[2 * half + s] = lookup(_mm512_multishift_epi64_epi8(load(kCodeTables<B>.shifts[s]), v), s);
      }
    } else {
      __m512i v;
      if constexpr (B == 1) {
        v = _mm512_broadcast_i32x4(Full ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                                        : _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask.first), p));
        v = _mm512_multishift_epi64_epi8(load(kCodeTables<B>.shifts[0]), v);
      } else if constexpr (B == 2) {
        v = _mm512_broadcast_i64x4(Full
                                       ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                       : _mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask.first), p));
      } else if constexpr (B == 3) {
        constexpr __mmask64 whole = (__mmask64{1} << 48) - 1;
        v = _mm512_maskz_loadu_epi8(Full ? whole : whole & mask.first, p);
        v = _mm512_permutexvar_epi8(load(kCodeTables<B>.bytes), v);
      } else {
        v = Full ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(mask.first, p);
      }
      asm("" : "+v"(v));
      for (int s = 0; s < 4; ++s) w[s] = lookup(index(v, s), s);
    }
  }

 private:
  static __m512i load(const void* table) { return _mm512_load_si512(table); }

  static __m512i index(__m512i v, int s) {
    if constexpr (B == 1) return v;
    else if constexpr (B == 4) return s == 0 ? v : _mm512_srli_epi16(v, 4 * s);
    else return _mm512_multishift_epi64_epi8(load(kCodeTables<B>.shifts[B == 2 ? s / 2 * 2 : s]), v);
  }

  static __m512i lookup(__m512i idx, int s) {
    const auto& t = kCodeTables<B>.values;
    if constexpr (B <= 5) {
      return _mm512_permutexvar_epi16(idx, load(t[B == 1 ? s : B == 2 ? s % 2 : 0]));
    } else {
      const __m512i low = _mm512_permutex2var_epi16(load(t[0]), idx, load(t[1]));
      if constexpr (B == 6) return low;
      const __m512i high = _mm512_permutex2var_epi16(load(t[2]), idx, load(t[3]));
      return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(idx, _mm512_set1_epi16(64)), low, high);
    }
  }

  static __mmask16 byte_mask(ChunkMask mask, int from) {
    return static_cast<__mmask16>((from < 64 ? mask.first : mask.second) >> (from % 64));
  }

  static __mmask64 window(ChunkMask mask, int from) {
    return from == 0 ? mask.first : mask.first >> from | mask.second << (64 - from);
  }

  template <bool Full>
  static __m512 widen(const uint8_t* p, __mmask16 mask) {
    const __m128i bytes = Full ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                               : _mm_maskz_loadu_epi8(mask, p);
    if constexpr (B == 0) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    // Unsigned code - 128, as a signed byte.
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(-128))));
  }
};

}  // namespace ao::avx512
