// Plain types that kernels and bindings share.
#pragma once
#include <cstdint>

namespace ao {

enum class DType : int8_t { f32, f16, bf16, f64, i8, u8, i32, i64, e4m3, e5m2, other };

enum class DeviceType : int8_t { cpu, cuda };

inline int dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32: case DType::i32: return 4;
    case DType::f16: case DType::bf16: return 2;
    case DType::f64: case DType::i64: return 8;
    default: return 1;
  }
}

inline bool is_activation_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

inline bool is_scale_dtype(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }

}  // namespace ao
