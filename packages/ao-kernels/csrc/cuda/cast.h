// Operands of training to float8 in both directions; ao_core/numerics.py defines codes and scales, bit for bit.
//
// R rows and C columns of x, padded with zeros to multiples of 16. Codes by rows lie as x does; transposed ones (C, R). See
// docs/decisions/0034.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/experts.h"
#include "types.h"

namespace ao::casts {

enum class Scales : int8_t {
  vectors,     // of rows and, independently, of columns
  row_blocks,  // of 128 elements along the codes
  squares,     // of 128 x 128
};

constexpr int kTile = 128;

struct Cast {
  const void* x;               // rows of 16-byte pieces, x_stride elements apart
  uint8_t *codes, *codes_t;    // nullptr: not wanted
  float *scale, *scale_t;
  uint32_t *peaks, *peaks_t;   // vectors: zeros, one a row and one a column, of each expert
  int64_t x_stride;
  int R, C, rows, columns;     // without and with padding
  bool half, e5m2, power_of_two;  // x is float16, not bfloat16
  Scales scales;
  // Tokens of experts: columns of each expert have scales of their own, and its transposed codes (places) begin at a multiple of 32.
  Experts experts;             // offsets nullptr: none
  int* ends;                   // of the experts' places
  int64_t places;
};

// Whether the kernels count so far.
inline bool takes(const Cast& a) {
  const int64_t tiles = (int64_t{a.rows} + kTile) / kTile * ((int64_t{a.columns} + kTile) / kTile);
  return a.rows < 1 << 30 && a.columns < 1 << 30 && tiles < 1 << 30;
}

// Adds to the peaks of rows and columns, where there are such, and writes the ends of experts' places.
cudaError_t find_peaks(const Cast& cast, cudaStream_t stream);

// From the peaks that find_peaks() leaves, right behind it in the stream.
cudaError_t cast_vectors(const Cast& cast, int multiprocessors, cudaStream_t stream);

// One grid each.
cudaError_t cast_row_blocks(const Cast& cast, int multiprocessors, cudaStream_t stream);
cudaError_t cast_squares(const Cast& cast, int multiprocessors, cudaStream_t stream);

}  // namespace ao::casts
