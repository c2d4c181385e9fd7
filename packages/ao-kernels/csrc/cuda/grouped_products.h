// Products of float8 operands of experts, as training needs them, on Hopper GPUs: the rows of an expert by its matrix, and the rows of two matrices
// over the places of an expert. The kernel is in grouped_products.cuh.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "cuda/experts.h"
#include "types.h"

namespace ao::bytes {

// y = (x * x_scale) @ (codes * scale).T of each expert, all codes e4m3.
//
//   over rows:    x (T, K), x_scale (T); codes (E, N, K), scale (E, N); y (T, N). An expert has rows of x.
//   over places:  x (M, T), x_scale (E, M); codes (N, T), scale (E, N); y (E, M, N). An expert has places of the sums, from a multiple of 32 to one.
struct GroupedProduct {
  const uint8_t* x;
  const float* x_scale;
  const uint8_t* codes;
  const float* scale;
  void* y;
  int64_t M, N, K;  // rows of x and of an expert's y, and bytes of a row of x and of codes; over rows M is T, over places K is
  Experts experts;
  DType y_dtype;
  bool over_places;
  bool fast_accum;  // sums of any length stay in the matrix units; else they are added to float32 ones every 128 products
};

// Whether the kernel takes these sizes and addresses.
bool takes(const GroupedProduct& product);

cudaError_t launch(const GroupedProduct& product, const Device& device, cudaStream_t stream);

}  // namespace ao::bytes
