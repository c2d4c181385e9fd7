// bf16 and f16 <-> f32 for scalar code. Header of the per-ISA parts: everything is static.
#pragma once
#include <cstdint>
#include <cstring>

#include "types.h"

namespace ao {
namespace {

[[maybe_unused]] inline float bits_to_f32(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

[[maybe_unused]] inline uint32_t f32_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

[[maybe_unused]] inline float bf16_to_f32(uint16_t h) { return bits_to_f32(uint32_t{h} << 16); }

// Round to nearest even; NaN stays NaN.
[[maybe_unused]] inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

[[maybe_unused]] inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_f32(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return bits_to_f32(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

// Round to nearest even, overflow to infinity; NaN stays NaN.
[[maybe_unused]] inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = f32_to_bits(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Adding 0.5 puts the ulp of the sum at 2**-24, the spacing of f16 subnormals.
    return sign | static_cast<uint16_t>(f32_to_bits(bits_to_f32(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}

[[maybe_unused]] inline float load_f32(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::bf16: return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case DType::f16: return f16_to_f32(static_cast<const uint16_t*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

[[maybe_unused]] inline void store_f32(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::bf16: static_cast<uint16_t*>(data)[index] = f32_to_bf16(value); break;
    case DType::f16: static_cast<uint16_t*>(data)[index] = f32_to_f16(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

}  // namespace
}  // namespace ao
