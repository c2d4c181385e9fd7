// Stored codes on their way from memory to the units of codes.cuh; the header of weight_only_small.cuh explains the terms.
#pragma once
#include "cuda/codes.cuh"
#include "cuda/fragments.cuh"
#include "cuda/weight_only_small.h"

namespace ao::small {

template <int BYTES>
__device__ __forceinline__ void read_piece(const uint8_t* shared, uint32_t* words) {
  if constexpr (BYTES == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(shared);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (BYTES == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(shared);
    words[0] = v.x, words[1] = v.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(shared);
  }
}

// The codes of a lane in one step of one row. They wait in shared memory, in pieces of the size they are copied in, piece
// i of all lanes side by side; every lane reads only what it copied, so that no barrier is needed. (Registers would hold
// as much, but the compiler has few scoreboards: a load that is waited for waits for all that were issued after it.)
// Of the step's codes `valid` lie in the row; zeros stand for the others and meet tokens of zeros.
template <int BITS, bool WIDE>
struct Raw;

template <int BITS>
struct Raw<BITS, true> {
  using C = Codes<BITS>;
  static constexpr int kWords = C::kUnitBytes;  // 4 units
  static constexpr int kPieceBytes = piece_bytes(kWords, true), kPieces = 4 * kWords / kPieceBytes;
  uint32_t words[kWords];

  __device__ __forceinline__ static void copy(uint8_t* shared, const uint8_t* step, int t, int lane, int valid) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      // Bytes: 16 codes of each half of the step, so that the four lanes copy 64 bytes that follow each other.
      const int from = kWords == 8 ? 64 * i + 16 * t : 4 * kWords * t + kPieceBytes * i;
      const int code = kWords == 8 ? from : 32 * t;
      copy_async<kPieceBytes>(shared + (32 * i + lane) * kPieceBytes, step + from, code < valid);
    }
  }

  __device__ __forceinline__ void read(const uint8_t* shared, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      read_piece<kPieceBytes>(shared + (32 * i + lane) * kPieceBytes, &words[i * kPieceBytes / 4]);
  }

  template <int J>
  __device__ __forceinline__ void unit(int, uint32_t (&out)[C::kUnitWords]) const {
    out[0] = bits_from<8 * J * C::kUnitBytes>(words);
    if constexpr (C::kUnitWords == 2) out[1] = bits_from<8 * J * C::kUnitBytes + 32>(words);
  }
};

template <int BITS>
struct Raw<BITS, false> {
  using C = Codes<BITS>;
  static constexpr int B = C::kUnitBytes;
  // A unit of b bytes need not start at a word: as many words as it touches at most.
  static constexpr int kPieceBytes = piece_bytes(B, false), kUnitPieces = unit_pieces(B);
  uint32_t words[4][kUnitPieces * kPieceBytes / 4];

  __device__ __forceinline__ static void copy(uint8_t* shared, const uint8_t* step, int t, int lane, int valid) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < kUnitPieces; ++i) {
        // The four units of j have B words: none behind them is read.
        const int from = B == 8 ? 8 * t : 4 * min(B * t / 4 + i, B - 1);
        copy_async<kPieceBytes>(shared + (32 * (j * kUnitPieces + i) + lane) * kPieceBytes,
                                step + 4 * j * B + from, 32 * j < valid);
      }
  }

  __device__ __forceinline__ void read(const uint8_t* shared, int lane) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < kUnitPieces; ++i)
        read_piece<kPieceBytes>(shared + (32 * (j * kUnitPieces + i) + lane) * kPieceBytes, &words[j][i]);
  }

  template <int J>
  __device__ __forceinline__ void unit(int t, uint32_t (&out)[C::kUnitWords]) const {
    if constexpr (B == 4 || B == 8) {
#pragma unroll
      for (int i = 0; i < C::kUnitWords; ++i) out[i] = words[J][i];
    } else {
      const int shift = B * t % 4 * 8;
#pragma unroll
      for (int i = 0; i < C::kUnitWords; ++i)
        out[i] = i + 1 < kUnitPieces ? __funnelshift_r(words[J][i], words[J][i + 1], shift)
                                     : words[J][i] >> shift;
    }
  }
};

}  // namespace ao::small
