// Eight values of a token to codes; ao_core/numerics.py defines them and their scales, bit for bit.
//
//   s = max(amax |x| / highest code, FLT_MIN)
//   int8    code = round_half_even(x * (1/s))     clamped where s is given
//   float8  code = float8(clamp(x / s))
//
// in float32, each operation rounded once.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace ao {

constexpr uint32_t kInfinity = 0x7f800000;
constexpr float kLeastScale = 0x1p-126f;
constexpr float kRounding = 0x1.8p23f;  // added to |v| < 2**22, it drops the fraction, half to even, and leaves the integer's low byte

template <class X>
__device__ inline void load_eight(const X* p, float (&v)[8]) {
  if constexpr (sizeof(X) == 4) {
    const float4 low = reinterpret_cast<const float4*>(p)[0], high = reinterpret_cast<const float4*>(p)[1];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  } else {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    const X* each = reinterpret_cast<const X*>(&raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(each[i]);
  }
}

// Bits of the largest magnitude: they order like the magnitudes, with inf and then NaN above all others.
__device__ inline uint32_t peak_of(const float (&v)[8]) {
  uint32_t peak = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) peak = max(peak, __float_as_uint(v[i]) & 0x7fffffffu);
  return peak;
}

__device__ inline float scale_of(uint32_t peak, float highest) {
  const float scale = fmaxf(__fdiv_rn(__uint_as_float(peak), highest), kLeastScale);
  return peak < kInfinity ? scale : __uint_as_float(0x7fc00000);
}

// value / scale, rounded once, for scales of at least FLT_MIN and quotients that are not much larger than a code: the product with the
// rounded reciprocal, corrected twice. The second correction starts from the quotient or a neighbour of it, so that its remainder is
// exact and its result rounded right (Markstein). Small scales are lifted, so that no remainder underflows.
struct Divisor {
  float lift, scale, inverse;
  __device__ explicit Divisor(float s) : Divisor(s, inverse_of(s)) {}
  __device__ Divisor(float s, float inverse_of_s) {
    lift = lift_of(s);
    scale = __fmul_rn(s, lift);
    inverse = inverse_of_s;
  }
  __device__ static float inverse_of(float s) { return __fdiv_rn(1.0f, __fmul_rn(s, lift_of(s))); }
  __device__ float of(float value) const {
    value = __fmul_rn(value, lift);
    float q = __fmul_rn(value, inverse);
    q = __fmaf_rn(__fmaf_rn(q, scale, -value), -inverse, q);
    return __fmaf_rn(__fmaf_rn(q, scale, -value), -inverse, q);
  }

 private:
  __device__ static float lift_of(float s) { return s < 0x1p-64f ? 0x1p64f : 1.0f; }
};

// inverse: 1 / scale, rounded.
template <bool GIVEN>
__device__ inline uint2 int8_codes(const float (&v)[8], float scale, float inverse) {
  uint32_t codes[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float product = __fmul_rn(v[i], inverse);
    if (GIVEN) {
      product = isnan(product) ? 0.0f : fminf(fmaxf(product, -127.0f), 127.0f);
    } else {
      product = isnan(scale) ? 0.0f : product;
    }
    codes[i / 4] |= (__float_as_uint(__fadd_rn(product, kRounding)) & 0xff) << i % 4 * 8;
  }
  return {codes[0], codes[1]};
}

template <bool GIVEN>
__device__ inline uint2 float8_codes(const float (&v)[8], float scale, const Divisor& divisor) {
  uint32_t codes[2] = {};
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    float q[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float value = v[i + j];
      if (GIVEN) q[j] = isfinite(value) ? __fdiv_rn(value, scale) : __uint_as_float(0x7fc00000);
      else q[j] = divisor.of(value);
    }
    const uint32_t both = __nv_cvt_float2_to_fp8x2(float2{q[0], q[1]}, __NV_SATFINITE, __NV_E4M3);
    codes[i / 4] |= both << i % 4 * 8;
  }
  return {codes[0], codes[1]};
}

}  // namespace ao
