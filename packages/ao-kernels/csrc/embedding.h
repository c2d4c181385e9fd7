// What the embedding kernels receive: rows of a quantized table, chosen by index and dequantized.
//
//   out[i, k] = (code[index[i], k] - zero) * scale, in float32, rounded to the dtype of out
#pragma once
#include <cstdint>

#include "types.h"

namespace ao {

struct EmbeddingArgs {
  const void* index;       // (count) int32 or int64, contiguous; every one in [0, N)
  void* out;               // (count, K) contiguous
  const uint8_t* codes;    // (N, row_bytes)
  const void* scale;       // (N or 1, G) f32 or bf16
  const void* zero;        // same shape and dtype as scale, or nullptr: 2**(bits-1), for int8 codes 0
  int64_t count, N, K, G;
  int64_t group_size, row_bytes;
  int64_t scale_stride;    // elements from one row's scales to the next: G, or 0 for shared scales
  int bits;                // 1..8 unsigned packed codes; 0: signed int8 codes
  int n_threads;
  DType index_dtype, out_dtype, scale_dtype;

  int64_t row(int64_t i) const {
    return index_dtype == DType::i32 ? static_cast<const int32_t*>(index)[i]
                                     : static_cast<const int64_t*>(index)[i];
  }
};

using EmbeddingKernel = void(const EmbeddingArgs&);

}  // namespace ao
