// Activations to int8 or float8 e4m3 codes and their scales; ao_core/numerics.py defines both, bit for bit.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "types.h"

namespace ao {

enum class TokenScales : int8_t { row, tensor, given, block };

struct TokenArgs {
  const void* x;       // (M, K), rows x_stride elements apart, beginning at multiples of 16 bytes
  uint8_t* codes;      // (M, K)
  float* scale;        // row, given: (M). tensor: one. block: (ceil(K / 128), scale_stride), a column a token
  const float* given;  // one
  uint32_t* peaks;     // tensor: (M), where it takes a grid of its own to find them
  int64_t M, K, x_stride, scale_stride;
  DType x_dtype;
  bool float8;         // else int8
  TokenScales scales;
  bool chained;        // to the grid in front
};

constexpr int64_t kMostColumns = 32768;  // threads of a block hold them in registers
constexpr int64_t kFewTogether = 1 << 15;  // elements that share a scale, up to which every block reads them all

inline bool quantizes(int64_t M, int64_t K) { return K % 16 == 0 && K <= kMostColumns && M < int64_t{1} << 31; }

// One grid, or two. early: they may start before those in front of them have ended. See chain.h: they let the next one start only when these
// have, or at once if they are chained.
cudaError_t quantize_tokens(const TokenArgs& a, bool early, cudaStream_t stream);

}  // namespace ao
