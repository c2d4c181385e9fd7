// Scales of a cast and quotients by them, in few instructions: as triton/codes.py makes them, and the same bits.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace ao::casts {

constexpr uint32_t kInfinity = 0x7f800000;

template <bool E5M2>
struct Codes {
  static constexpr float kHighest = E5M2 ? 57344.0f : 448.0f;
  static constexpr __nv_fp8_interpretation_t kKind = E5M2 ? __NV_E5M2 : __NV_E4M3;

  __device__ static uint32_t two(float low, float high) { return __nv_cvt_float2_to_fp8x2(float2{low, high}, __NV_SATFINITE, kKind); }
  __device__ static uint32_t four(float a, float b, float c, float d) { return __byte_perm(two(a, b), two(c, d), 0x5410); }
};

// The magnitudes of two 16-bit floats are ordered as integers, inf and then NaN above all others.
__device__ __forceinline__ uint32_t magnitudes(uint32_t two) { return two & 0x7fff7fffu; }

// Bits of the float32 with this 16-bit magnitude.
template <bool HALF>
__device__ __forceinline__ uint32_t peak_bits(uint32_t magnitude) {
  if constexpr (HALF) return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(magnitude))));
  return magnitude << 16;
}

template <bool HALF>
__device__ __forceinline__ float2 widened(uint32_t two) {
  if constexpr (HALF) return __half22float2(*reinterpret_cast<const __half2*>(&two));
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
}

// peak / kHighest, rounded, without a division: the corrected product is the quotient for every mantissa. At least FLT_MIN, NaN for what is
// not finite.
template <bool E5M2, bool POWER>
__device__ __forceinline__ float scale_of(uint32_t peak) {
  constexpr float kHighest = Codes<E5M2>::kHighest, kPart = 1.0f / kHighest;
  const float size = __uint_as_float(peak);
  float scale = __fmul_rn(size, kPart);
  scale = fmaxf(__fmaf_rn(__fmaf_rn(scale, -kHighest, size), kPart, scale), 0x1p-126f);
  if (POWER) scale = __uint_as_float((__float_as_uint(scale) + 0x7fffff) & 0x7f800000);
  return peak < kInfinity ? scale : __uint_as_float(0x7fc00000);
}

// value / scale, where it decides a code that a value of 16 bits has: of a power of two the product with its inverse, else corrected once.
// Small scales are lifted, so that no remainder underflows.
// LIFTED: some may be.
template <bool POWER>
struct Step {
  float inverse;

  Step() = default;
  __device__ explicit Step(float scale) { inverse = scale == scale ? __uint_as_float(0x7f000000 - __float_as_uint(scale)) : scale; }
  __device__ static bool is_lifted() { return false; }
  template <bool LIFTED>
  __device__ __forceinline__ float of(float value) const {
    return __fmul_rn(value, inverse);
  }
};

template <>
struct Step<false> {
  float inverse, divisor, lift;

  Step() = default;
  __device__ explicit Step(float scale) {
    lift = scale < 0x1p-64f ? 0x1p64f : 1.0f;
    divisor = __fmul_rn(scale, lift);
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(divisor));
    inverse = __fmaf_rn(found, -__fmaf_rn(divisor, found, -1.0f), found);
  }
  __device__ bool is_lifted() const { return lift != 1.0f; }
  template <bool LIFTED>
  __device__ __forceinline__ float of(float value) const {
    if (LIFTED) value = __fmul_rn(value, lift);
    const float quotient = __fmul_rn(value, inverse);
    return __fmaf_rn(__fmaf_rn(quotient, divisor, -value), -inverse, quotient);
  }
};

}  // namespace ao::casts
