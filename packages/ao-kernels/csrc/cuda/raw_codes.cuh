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

// The codes of a lane in one step of one row, of row g of eight. They wait in shared memory. (Registers would hold as much,
// but the compiler has few scoreboards: a load that is waited for waits for all that were issued after it.) Of the step's
// codes `valid` lie in the row; zeros stand for the others and meet tokens of zeros.
//
// A lane copies of kCopyRows rows of the eight, which copy_row names, and a warp must meet between the copies' end and
// the reads where that is not its own row alone. Then pieces of the size that is copied, piece i of all lanes side by side,
// stand where the lane itself finds them.
template <int BITS, bool WIDE, bool BYTES = Codes<BITS>::kUnitBytes == 8>
struct Raw;

// Whole bytes: a step of a row is a line of 128 bytes, which eight lanes copy together. Swapping halves or quarters of
// every other row makes the eight lanes (wide) or sixteen (narrow) that read together hit different banks.
template <int BITS, bool WIDE>
struct Raw<BITS, WIDE, true> {
  static constexpr int kCopyRows = 2, kLineBytes = 128;
  uint32_t words[8];

  __device__ __forceinline__ static int copy_row(int lane, int i) { return lane / 8 + 4 * i; }

  // The row's first code of the step is at step + behind[i].
  __device__ __forceinline__ static void copy(uint8_t* shared, const uint8_t* step, const uint32_t (&behind)[kCopyRows],
                                              int lane, int valid) {
#pragma unroll
    for (int i = 0; i < kCopyRows; ++i) {
      const int row = copy_row(lane, i), piece = lane % 8;
      copy_async<16, true>(shared + row * kLineBytes + place(row, piece), step + behind[i] + 16 * piece, 16 * piece < valid);
    }
  }

  __device__ __forceinline__ void read(const uint8_t* shared, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint8_t* const line = shared + g * kLineBytes;
    if constexpr (WIDE) {
#pragma unroll
      for (int i = 0; i < 2; ++i) read_piece<16>(line + place(g, 4 * i + t), &words[4 * i]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) read_piece<8>(line + place(g, 2 * j + t / 2) + t % 2 * 8, &words[2 * j]);
    }
  }

  template <int J>
  __device__ __forceinline__ void unit(int, uint32_t (&out)[2]) const {
    out[0] = words[2 * J], out[1] = words[2 * J + 1];
  }

 private:
  // The byte of a line where a piece of 16 bytes stands.
  __device__ __forceinline__ static int place(int row, int piece) {
    return 16 * (piece ^ (WIDE ? row % 2 * 4 : row % 4 * 2));
  }
};

template <int BITS>
struct Raw<BITS, true, false> {
  using C = Codes<BITS>;
  static constexpr int kWords = C::kUnitBytes;  // 4 units
  static constexpr int kCopyRows = 1, kPieceBytes = piece_bytes(kWords, true), kPieces = 4 * kWords / kPieceBytes;
  uint32_t words[kWords];

  __device__ __forceinline__ static int copy_row(int lane, int) { return lane / 4; }

  __device__ __forceinline__ static void copy(uint8_t* shared, const uint8_t* step, const uint32_t (&behind)[kCopyRows],
                                              int lane, int valid) {
    const int t = lane % 4;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      copy_async<kPieceBytes>(shared + (32 * i + lane) * kPieceBytes,
                              step + behind[0] + 4 * kWords * t + kPieceBytes * i, 32 * t < valid);
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
struct Raw<BITS, false, false> {
  using C = Codes<BITS>;
  static constexpr int B = C::kUnitBytes;
  // A unit of b bytes need not start at a word: as many words as it touches at most.
  static constexpr int kCopyRows = 1, kPieceBytes = piece_bytes(B, false), kUnitPieces = unit_pieces(B);
  uint32_t words[4][kUnitPieces * kPieceBytes / 4];

  __device__ __forceinline__ static int copy_row(int lane, int) { return lane / 4; }

  __device__ __forceinline__ static void copy(uint8_t* shared, const uint8_t* step, const uint32_t (&behind)[kCopyRows],
                                              int lane, int valid) {
    const int t = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < kUnitPieces; ++i) {
        // The four units of j have B words: none behind them is read.
        const int from = 4 * min(B * t / 4 + i, B - 1);
        copy_async<kPieceBytes>(shared + (32 * (j * kUnitPieces + i) + lane) * kPieceBytes,
                                step + behind[0] + 4 * j * B + from, 32 * j < valid);
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
    if constexpr (B == 4) {
      out[0] = words[J][0];
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
