// The weight of a weight-only linear, for products that a library does faster.
#pragma once
#include <cuda_runtime_api.h>

#include "linear.h"

namespace ao {

// a.y: (N, K) of a.x_dtype (f32, bf16 or f16); w = (code - zero) * scale in float32, rounded once.
cudaError_t dequantize(const LinearArgs& a, cudaStream_t stream);

}  // namespace ao
