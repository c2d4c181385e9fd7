// Weight codes of a row as unsigned bytes in AVX-512 registers.
//
// A chunk is what one load brings: 64 * P codes that fill 64 bytes, where P = 8 / b codes share a byte, or, with P = 0 and any
// width, 64 codes in 8 * b bytes. The P codes of a byte are taken apart by shifts and masks only, so register p of a chunk holds
// codes p, P + p, 2 P + p, ... ("planes"), and tokens are put in that order once a call. With P = 0 vpermb and
// vpmultishiftqb bring each code to its own byte, in natural order.
#pragma once
#include "int8_product.h"
#include "registers_avx512.h"

namespace ao::avx512 {
namespace {

// Groups whose codes are taken apart in planes: a 32-bit lane of a dot product must not mix groups.
inline int planes_of(const LinearArgs& a) {
  const int bits = code_bits(a);
  if (8 % bits != 0) return 0;
  const int planes = 8 / bits;
  return a.G == 1 || a.group_size % (4 * planes) == 0 ? planes : 0;
}

template <int P>
class ChunkCodes {
 public:
  static constexpr int kRegisters = P == 0 ? 1 : P;
  static constexpr int kCodes = 64 * kRegisters;

  // 1..8 bits, or 0 for int8 codes, which become code + 128.
  explicit ChunkCodes(int format)
      : bytes(P == 0 ? 8 * format : 64), full_(low_bits(bytes)) {
    const int bits = format ? format : 8;
    alignas(64) uint8_t from[64], shift[64];
    for (int i = 0; i < 64; ++i) {
      from[i] = static_cast<uint8_t>(i / 8 * bits + i % 8) % 64;
      shift[i] = static_cast<uint8_t>(i % 8 * bits);
    }
    from_ = _mm512_load_si512(from);
    shift_ = _mm512_load_si512(shift);
    mask_ = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
    flip_ = _mm512_set1_epi8(format == 0 ? static_cast<char>(0x80) : 0);
  }

  // A whole chunk, and one of which `left` bytes exist.
  __m512i load(const uint8_t* p) const {
    return P == 0 ? _mm512_maskz_loadu_epi8(full_, p) : _mm512_loadu_si512(p);
  }
  __m512i load(const uint8_t* p, int64_t left) const {
    return _mm512_maskz_loadu_epi8(full_ & low_bits(left), p);
  }

  __m512i plane(__m512i chunk, int p) const {
    constexpr int kWidth = P == 0 ? 8 : 8 / P;
    if constexpr (P == 0) {
      const __m512i spread = _mm512_permutexvar_epi8(from_, chunk);
      return _mm512_and_si512(_mm512_multishift_epi64_epi8(shift_, spread), mask_);
    } else if constexpr (P == 1) {
      return _mm512_xor_si512(chunk, flip_);
    } else {
      return _mm512_and_si512(p ? _mm512_srli_epi16(chunk, kWidth * p) : chunk, mask_);
    }
  }

  const int bytes;

 private:
  __mmask64 full_;
  __m512i from_, shift_, mask_, flip_;
};

// sums += codes (unsigned) * token (signed), four products a 32-bit lane. gcc 12 copies every accumulator of a register-blocked
// loop from register to register when this is _mm512_dpbusd_epi32 (276 instead of 472 of 475 GMAC/s a core, Zen 5).
inline __m512i dot4(__m512i sums, __m512i codes, __m512i token) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(token));
  return sums;
}

}  // namespace
}  // namespace ao::avx512
