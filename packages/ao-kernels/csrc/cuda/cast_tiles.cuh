// A tile of 128 x 128 to codes by rows and transposed. A thread holds two patches of 4 rows by 8 columns: what it stores by rows are 8 bytes that
// follow each other for 16 threads, and of the codes above each other it makes words, which go through shared memory and are stored as 16
// bytes, 128 of a column by eight threads.
#pragma once
#include "cuda/cast_place.cuh"
#include "cuda/cast_steps.cuh"
#include "cuda/fragments.cuh"
#include "cuda/grid.h"

namespace ao::casts {

constexpr int kThreads = 256, kPatches = 2;

template <bool HALF, bool E5M2, bool POWER>
struct Tile {
  using Step = casts::Step<POWER>;
  uint4 raw[kPatches][4];
  int warp = threadIdx.x / 32, chunk = threadIdx.x % 16, upper = threadIdx.x % 32 / 16;

  __device__ __forceinline__ int pair(int patch) const { return patch * 8 + warp; }  // of groups of four rows
  __device__ __forceinline__ int row(int patch) const { return 8 * pair(patch) + 4 * upper; }

  // x: the first element of the tile. Zeros outside of `rows` and `columns`.
  __device__ __forceinline__ void load(const uint16_t* x, int64_t stride, int rows, int columns) {
#pragma unroll
    for (int p = 0; p < kPatches; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        raw[p][i] = {};
        if (row(p) + i < rows && 8 * chunk < columns) raw[p][i] = __ldcs(reinterpret_cast<const uint4*>(x + (row(p) + i) * stride + 8 * chunk));
      }
    }
  }

  __device__ __forceinline__ void widen(int p, float (&v)[4][8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t two[4] = {raw[p][i].x, raw[p][i].y, raw[p][i].z, raw[p][i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = widened<HALF>(two[j]);
        v[i][2 * j] = pair.x, v[i][2 * j + 1] = pair.y;
      }
    }
  }

  // codes: of the tile's first element.
  __device__ __forceinline__ static void store_row(const float (&v)[8], const Step& step, uint8_t* codes) {
    uint2 found;
    found.x = Codes<E5M2>::four(step.of(v[0]), step.of(v[1]), step.of(v[2]), step.of(v[3]));
    found.y = Codes<E5M2>::four(step.of(v[4]), step.of(v[5]), step.of(v[6]), step.of(v[7]));
    *reinterpret_cast<uint2*>(codes) = found;
  }

  // Words of a column are 8 * 32 apart for every two; a half warp writes, and later reads, all banks once.
  __device__ __forceinline__ static int word(int pair, int j, int chunk) { return (pair * 8 + j) * 32 + (chunk + (pair & ~1)) % 16 * 2; }

  __device__ __forceinline__ void put_columns(int p, const float (&v)[4][8], const Step (&steps)[8], uint32_t* words) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const Step& step = steps[j];
      words[word(pair(p), j, chunk) + upper] = Codes<E5M2>::four(step.of(v[0][j]), step.of(v[1][j]), step.of(v[2][j]), step.of(v[3][j]));
    }
  }

  // codes_t: of the tile's first element, columns `pitch` bytes apart.
  __device__ __forceinline__ static void store_columns(const uint32_t* words, uint8_t* codes_t, int64_t pitch, int columns, int places) {
#pragma unroll
    for (int i = 0; i < kTile * kTile / 16 / kThreads; ++i) {
      const int id = i * kThreads + threadIdx.x, q = id % 8, column = id / 8;
      const int chunk = column % 2 + column / 16 * 2, j = column / 2 % 8, k = 8 * chunk + j;
      const uint2 low = *reinterpret_cast<const uint2*>(words + word(2 * q, j, chunk));
      const uint2 high = *reinterpret_cast<const uint2*>(words + word(2 * q + 1, j, chunk));
      if (k < columns && 16 * q < places) *reinterpret_cast<uint4*>(codes_t + k * pitch + 16 * q) = {low.x, low.y, high.x, high.y};
    }
  }
};

// Where a tile's results go.
struct Targets {
  uint8_t *codes, *codes_t;
  int64_t pitch;  // of codes_t
  int rows, columns, places;
};

__device__ __forceinline__ Targets targets_of(const Cast& a, const Place& at, int tile_k, int matrix) {
  const int k = tile_k * kTile;
  const int64_t size = int64_t{a.rows} * a.columns, pitch = a.experts.offsets ? a.places : a.rows;
  Targets to{nullptr, nullptr, pitch, a.experts.offsets ? at.read : min(kTile, a.rows - at.row), min(kTile, a.columns - k), at.places};
  if (a.codes) to.codes = a.codes + matrix * size + int64_t{at.row} * a.columns + k;
  if (a.codes_t && at.vector >= 0) to.codes_t = a.codes_t + matrix * size + k * pitch + first_place(a, at);
  return to;
}

__device__ __forceinline__ const uint16_t* first_of(const Cast& a, const Place& at, int tile_k, int matrix) {
  return static_cast<const uint16_t*>(a.x) + matrix * a.x_matrix + at.row * a.x_stride + tile_k * kTile;
}

template <template <bool, bool, bool> class KERNEL>
cudaError_t start(Grid& grid, const Cast& a) {
  const auto of = [&]<bool HALF, bool E5M2>() {
    return a.power_of_two ? KERNEL<HALF, E5M2, true>::start(grid, a) : KERNEL<HALF, E5M2, false>::start(grid, a);
  };
  if (a.half) return a.e5m2 ? of.template operator()<true, true>() : of.template operator()<true, false>();
  return a.e5m2 ? of.template operator()<false, true>() : of.template operator()<false, false>();
}

}  // namespace ao::casts
