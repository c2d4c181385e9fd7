// Stored codes -> pairs of 16-bit floats, exactly and without conversion instructions.
//
// A unit is 8 codes that follow each other in a row: b bytes of a little-endian stream of b-bit codes, or 8 bytes of int8
// or float8 codes.
// Codes<b>::unpack<Half>(unit, pairs) gives four registers of two 16-bit floats (the first in the low half),
//
//   pairs[i] = (code[order(2i)] - 2**(b-1), code[order(2i+1)] - 2**(b-1))       int8 and float8: the codes as they are
//
// where Codes<b>::order is 0 4 1 5 2 6 3 7 up to 7 bits and 0 2 1 3 4 6 5 7 for bytes: whatever shares a mask. Codes of
// float8 stay in order, for an instruction that converts two (sm_89 on).
// A code becomes the last bits of 128 (bfloat16 has 7 of them) or 1024 (float16, 10), and what is too much is subtracted.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "linear.h"

namespace ao {

// (a & mask) | bits and (a & mask) ^ bits in one instruction.
template <uint32_t MASK, uint32_t BITS>
__device__ __forceinline__ uint32_t and_or(uint32_t a) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "n"(MASK), "n"(BITS));
  return d;
}

template <uint32_t MASK, uint32_t BITS>
__device__ __forceinline__ uint32_t and_xor(uint32_t a) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "n"(MASK), "n"(BITS));
  return d;
}

template <class Half>
constexpr bool is_bf16 = false;
template <>
inline constexpr bool is_bf16<__nv_bfloat16> = true;

// a - b of two pairs.
template <class Half>
__device__ __forceinline__ uint32_t subtract_pair(uint32_t a, uint32_t b) {
  uint32_t d;
  if constexpr (is_bf16<Half>) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  } else {
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  }
  return d;
}

// Bits `shift` to `shift` + 31 of a little-endian sequence of words; words outside are taken for zero.
template <int SHIFT, int WORDS>
__device__ __forceinline__ uint32_t bits_from(const uint32_t (&words)[WORDS]) {
  constexpr int word = SHIFT / 32, rest = SHIFT % 32;
  if constexpr (word >= WORDS) {
    return 0;
  } else if constexpr (rest == 0) {
    return words[word];
  } else if constexpr (word + 1 >= WORDS) {
    return words[word] >> rest;
  } else {
    return __funnelshift_r(words[word], words[word + 1], rest);
  }
}

template <int BITS>
struct Codes {
  static_assert(BITS >= 1 && BITS <= 7);
  static constexpr int kUnitBytes = BITS;
  static constexpr int kUnitWords = (BITS + 3) / 4;
  static constexpr float kMiddle = 1 << (BITS - 1);
  __host__ __device__ static constexpr int order(int i) { return i / 2 + i % 2 * 4; }

  template <class Half>
  __device__ __forceinline__ static void unpack(const uint32_t (&unit)[kUnitWords],
                                                uint32_t (&pairs)[4]) {
    const uint32_t upper = bits_from<4 * BITS>(unit);
    pairs[0] = pair<Half, 0>(unit[0], upper);
    pairs[1] = pair<Half, 1>(unit[0], upper);
    pairs[2] = pair<Half, 2>(unit[0], upper);
    pairs[3] = pair<Half, 3>(unit[0], upper);
  }

 private:
  // Code I of the lower and of the upper four codes.
  template <class Half, int I>
  __device__ __forceinline__ static uint32_t pair(uint32_t lower, uint32_t upper) {
    // The two bytes of each from which on the code is whole.
    constexpr int end = I * BITS + BITS;
    constexpr int byte = end <= 16 ? 0 : (end - 16 + 7) / 8;
    constexpr uint32_t select = byte * 0x0011u + 0x0010u + (byte * 0x1100u + 0x5400u);
    uint32_t both = lower;
    if constexpr (BITS != 4) both = __byte_perm(lower, upper, select);
    constexpr uint32_t ones = (1u << BITS) - 1;
    constexpr uint32_t magic = is_bf16<Half> ? 0x4300u : 0x6400u;
    const uint32_t biased = and_or<ones * 0x10001u, magic * 0x10001u>(both >> (I * BITS - 8 * byte));
    // 128 + 2**(b-1) or 1024 + 2**(b-1)
    constexpr uint32_t excess = magic + (1u << (BITS - 1));
    return subtract_pair<Half>(biased, excess * 0x10001u);
  }
};

// Whole bytes: int8 codes, or unsigned ones less 128.
template <bool SIGNED>
struct ByteCodes {
  static constexpr int kUnitBytes = 8;
  static constexpr int kUnitWords = 2;
  static constexpr float kMiddle = SIGNED ? 0 : 128;
  __host__ __device__ static constexpr int order(int i) { return i / 4 * 4 + i / 2 % 2 + i % 2 * 2; }

  template <class Half>
  __device__ __forceinline__ static void unpack(const uint32_t (&unit)[2], uint32_t (&pairs)[4]) {
    pairs[0] = even<Half>(unit[0]);
    pairs[1] = even<Half>(unit[0] >> 8);
    pairs[2] = even<Half>(unit[1]);
    pairs[3] = even<Half>(unit[1] >> 8);
  }

 private:
  // Bytes 0 and 2.
  template <class Half>
  __device__ __forceinline__ static uint32_t even(uint32_t word) {
    if constexpr (is_bf16<Half>) {
      // 8 bits do not fit behind 128: the lower 7 do, and the sign makes 128 or 256 of what is subtracted.
      const uint32_t lower = and_or<0x007f007fu, 0x43004300u>(word);
      const uint32_t excess = SIGNED ? and_or<0x00800080u, 0x43004300u>(word)
                                     : and_xor<0x00800080u, 0x43804380u>(word);
      return subtract_pair<Half>(lower, excess);
    } else {
      const uint32_t biased = SIGNED ? and_xor<0x00ff00ffu, 0x64806480u>(word)
                                     : and_or<0x00ff00ffu, 0x64006400u>(word);
      return subtract_pair<Half>(biased, 0x64806480u);
    }
  }
};

// float8: float16 and bfloat16 hold all of its values; inf and NaN stay what they are.
template <__nv_fp8_interpretation_t KIND>
struct Float8Codes {
  static constexpr int kUnitBytes = 8;
  static constexpr int kUnitWords = 2;
  static constexpr float kMiddle = 0;
  __host__ __device__ static constexpr int order(int i) { return i; }

  template <class Half>
  __device__ __forceinline__ static void unpack(const uint32_t (&unit)[2], uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto codes = static_cast<__nv_fp8x2_storage_t>(unit[i / 2] >> i % 2 * 16);
      const __half2 values = __nv_cvt_fp8x2_to_halfraw2(codes, KIND);
      if constexpr (is_bf16<Half>) {
        const float2 v = __half22float2(values);
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v.x, v.y);
        pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
      } else {
        pairs[i] = *reinterpret_cast<const uint32_t*>(&values);
      }
    }
  }
};

template <>
struct Codes<8> : ByteCodes<false> {};
template <>
struct Codes<kInt8> : ByteCodes<true> {};
template <>
struct Codes<kE4m3> : Float8Codes<__NV_E4M3> {};
template <>
struct Codes<kE5m2> : Float8Codes<__NV_E5M2> {};

}  // namespace ao
