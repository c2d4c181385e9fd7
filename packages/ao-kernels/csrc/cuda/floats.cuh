// Numbers of a dtype that is known when the program runs.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "types.h"

namespace ao {

// Element `at` of f32, bf16 or f16 data.
__device__ inline float load_float(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    case DType::f16: return __half2float(static_cast<const __half*>(data)[at]);
    default: return static_cast<const float*>(data)[at];
  }
}

}  // namespace ao
