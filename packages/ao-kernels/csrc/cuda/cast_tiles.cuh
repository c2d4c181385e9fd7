// Tiles of 128 x 128 to codes by rows and transposed. A block of threads takes one tile after the other, and has the next one copied to shared
// memory meanwhile. A thread works on patches of 4 rows by 8 columns: what it stores by rows are 8 bytes that follow each other for 16 threads,
// and of the codes above each other it makes words, which go through shared memory and are stored as 16 bytes, 128 of a column by eight
// threads.
#pragma once
#include "cuda/cast_place.cuh"
#include "cuda/cast_steps.cuh"
#include "cuda/fragments.cuh"
#include "cuda/grid.h"

namespace ao::casts {

#ifndef AO_T
#define AO_T 256
#define AO_B 2
#endif
constexpr int kThreads = AO_T, kPatches = kTile / (kThreads / 32 * 8), kPieces = kTile / 8;  // pieces of 16 bytes of a row
constexpr int kTileBytes = kTile * kTile * 2, kWordBytes = kTile * kTile, kTilesBytes = 2 * kTileBytes + kWordBytes;
constexpr int kBlocks = AO_B;  // of a multiprocessor

// A tile's place and where its results go.
struct Work {
  Place at;
  int tile_k = 0, matrix = 0, k = 0;
  int to_rows = 0, to_columns = 0;
  bool exists = false;
};

// tile: of all, along the columns first.
__device__ __forceinline__ Work work_of(const Cast& a, int tile, int tiles, int tiles_k) {
  Work found;
  if (tile < 0) return found;
  found.matrix = tile / tiles, found.tile_k = tile % tiles % tiles_k, found.k = found.tile_k * kTile;
  found.at = place_of(a, tile % tiles / tiles_k, found.matrix);
  found.exists = !found.at.nothing;
  found.to_rows = a.experts.offsets ? found.at.read : min(kTile, a.rows - found.at.row);
  found.to_columns = min(kTile, a.columns - found.k);
  return found;
}

struct Lane {
  int warp = threadIdx.x / 32, chunk = threadIdx.x % 16, upper = threadIdx.x % 32 / 16;

  __device__ __forceinline__ int pair(int patch) const { return patch * (kThreads / 32) + warp; }  // of groups of four rows
  __device__ __forceinline__ int row(int patch) const { return 8 * pair(patch) + 4 * upper; }
};

// Zeros outside of the tile.
__device__ __forceinline__ void fetch(const Cast& a, const Work& work, uint4* shared) {
  const int piece = threadIdx.x % kPieces, first = threadIdx.x / kPieces;
  const auto* const x = static_cast<const uint16_t*>(a.x) + work.matrix * a.x_matrix + work.k + 8 * piece;
  const bool inside = work.exists && work.k + 8 * piece < a.C;
#pragma unroll
  for (int row = 0; row < kTile; row += kThreads / kPieces)
    copy_async<16>(shared + (row + first) * kPieces + piece, x + (work.at.row + row + first) * a.x_stride, inside && row + first < work.at.read);
}

template <bool HALF>
__device__ __forceinline__ void widen(const uint4& raw, float (&v)[8]) {
  const uint32_t two[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 pair = widened<HALF>(two[j]);
    v[2 * j] = pair.x, v[2 * j + 1] = pair.y;
  }
}

template <bool E5M2, class Step>
__device__ __forceinline__ void store_row(const float (&v)[8], const Step& step, uint8_t* codes) {
  uint2 found;
  found.x = Codes<E5M2>::four(step.of(v[0]), step.of(v[1]), step.of(v[2]), step.of(v[3]));
  found.y = Codes<E5M2>::four(step.of(v[4]), step.of(v[5]), step.of(v[6]), step.of(v[7]));
  *reinterpret_cast<uint2*>(codes) = found;
}

// Words of a column are 8 * 32 apart for every two; a half warp writes, and later reads, all banks once.
__device__ __forceinline__ int word(int pair, int j, int chunk) { return (pair * 8 + j) * 32 + (chunk + (pair & ~1)) % 16 * 2; }

template <bool E5M2, class Step>
__device__ __forceinline__ void put_columns(const Lane& lane, int patch, const float (&v)[4][8], const Step (&steps)[8], uint32_t* words) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const Step& step = steps[j];
    words[word(lane.pair(patch), j, lane.chunk) + lane.upper] =
        Codes<E5M2>::four(step.of(v[0][j]), step.of(v[1][j]), step.of(v[2][j]), step.of(v[3][j]));
  }
}

// codes_t: of the tile's first element, columns `pitch` bytes apart.
__device__ __forceinline__ void store_columns(const uint32_t* words, uint8_t* codes_t, int64_t pitch, int columns, int places) {
#pragma unroll
  for (int i = 0; i < kTile * kTile / 16 / kThreads; ++i) {
    const int id = i * kThreads + threadIdx.x, q = id % 8, column = id / 8;
    const int chunk = column % 2 + column / 16 * 2, j = column / 2 % 8, k = 8 * chunk + j;
    const uint2 low = *reinterpret_cast<const uint2*>(words + word(2 * q, j, chunk));
    const uint2 high = *reinterpret_cast<const uint2*>(words + word(2 * q + 1, j, chunk));
    if (k < columns && 16 * q < places) *reinterpret_cast<uint4*>(codes_t + k * pitch + 16 * q) = {low.x, low.y, high.x, high.y};
  }
}

__device__ __forceinline__ uint8_t* codes_of(const Cast& a, const Work& work) {
  return a.codes ? a.codes + (int64_t{work.matrix} * a.rows + work.at.row) * a.columns + work.k : nullptr;
}

__device__ __forceinline__ uint8_t* transposed_of(const Cast& a, const Work& work) {
  const int64_t pitch = a.experts.offsets ? a.places : a.rows;
  return a.codes_t && work.at.vector >= 0 ? a.codes_t + (int64_t{work.matrix} * a.columns + work.k) * pitch + first_place(a, work.at) : nullptr;
}

inline int64_t tiles_of_rows(const Cast& a) { return a.experts.offsets ? most_tiles(a.experts, kTile) : (a.rows + kTile - 1) / kTile; }
inline int tiles_of_columns(const Cast& a) { return (a.columns + kTile - 1) / kTile; }

// KERNEL::start(a, grid, blocks) of the numbers that the cast has.
template <template <bool, bool, bool> class KERNEL>
cudaError_t start(const Cast& a, int multiprocessors, bool early, cudaStream_t stream) {
  const auto of = [&]<bool HALF, bool E5M2>() {
    return a.power_of_two ? KERNEL<HALF, E5M2, true>::start(a, multiprocessors, early, stream)
                          : KERNEL<HALF, E5M2, false>::start(a, multiprocessors, early, stream);
  };
  if (a.half) return a.e5m2 ? of.template operator()<true, true>() : of.template operator()<true, false>();
  return a.e5m2 ? of.template operator()<false, true>() : of.template operator()<false, false>();
}

// As many blocks as run at once, or as there are tiles.
template <auto KERNEL>
cudaError_t start_blocks(const Cast& a, int multiprocessors, bool early, cudaStream_t stream) {
  const int64_t tiles = tiles_of_rows(a) * tiles_of_columns(a), all = tiles * a.matrices;
  if (const cudaError_t error = allow_shared_memory<KERNEL>(kTilesBytes)) return error;
  Grid grid(static_cast<unsigned>(all < kBlocks * multiprocessors ? all : kBlocks * multiprocessors), kThreads, kTilesBytes, stream);
  if (early) grid.early();
  return grid.start(KERNEL, a, static_cast<int>(tiles), tiles_of_columns(a));
}

}  // namespace ao::casts
