// What the weight-only linear kernels receive, and how their Python arguments are read.
//
//   y_MN = x_MK @ w_NK.T + bias_N,   w = (code - zero) * scale
//
// M tokens, N output features, K input features, G groups of group_size along K, b bits a code.
#pragma once
#include <cstdint>

#include "types.h"

namespace ao {

// Codes of a byte that are no unsigned integers, in the place of a number of bits.
constexpr int kInt8 = 0, kE4m3 = -1, kE5m2 = -2;

struct LinearArgs {
  const void* x;           // (M, K), rows x_stride elements apart, elements adjacent
  void* y;                 // (M, N) contiguous, dtype of x
  const uint8_t* codes;    // (N, row_bytes)
  const void* scale;       // (N or 1, G) f32 or bf16
  const void* zero;        // same shape and dtype as scale, or nullptr: 2**(bits-1), for int8 codes 0
  const void* bias;        // (N) f32, f16 or bf16, or nullptr
  int64_t M, N, K, G;
  int64_t x_stride;
  int64_t group_size;      // of every group but the last, which may be shorter
  int64_t row_bytes;       // bytes of codes a row
  int64_t scale_stride;    // elements from one row's scales to the next: G, or 0 for shared scales
  int bits;                // 1..8 unsigned packed codes; or kInt8, kE4m3, kE5m2
  int n_threads;
  DType x_dtype, scale_dtype, bias_dtype;
  int64_t block_n = 1;     // rows that share a row of scales; more than one only with float8
};

using LinearKernel = void(const LinearArgs&);

}  // namespace ao
