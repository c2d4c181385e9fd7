// Linears of quantized activations and 8-bit weights of experts on Hopper GPUs: the two launches of a call. The kernels are in
// quantize_tokens.cu and grouped_bytes.cuh.
#pragma once
#include "cuda/byte_product.h"
#include "cuda/experts.h"

namespace ao::bytes {

// `one`: of expert 0, for all tokens.
struct GroupedLinear {
  Linear one;
  Experts experts;
  int64_t scale_bytes, bias_bytes;  // from one expert's to the next one's
};

bool takes(const GroupedLinear& linear);

cudaError_t launch(const GroupedLinear& linear, const Device& device, cudaStream_t stream);

}  // namespace ao::bytes
