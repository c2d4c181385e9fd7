// Codes with scales of blocks: a tile is a block of 128 x 128, or holds those of 1 x 128 of both directions.
#include "cuda/cast_tiles.cuh"

namespace ao::casts {
namespace {

__device__ __forceinline__ uint32_t largest_of(const uint4& raw) {
  return __vmaxu2(__vmaxu2(magnitudes(raw.x), magnitudes(raw.y)), __vmaxu2(magnitudes(raw.z), magnitudes(raw.w)));
}

__device__ __forceinline__ uint4 larger(const uint4& a, const uint4& raw) {
  return {__vmaxu2(a.x, magnitudes(raw.x)), __vmaxu2(a.y, magnitudes(raw.y)), __vmaxu2(a.z, magnitudes(raw.z)), __vmaxu2(a.w, magnitudes(raw.w))};
}

// Of eight columns, by the rows of a warp.
template <class TILE>
__device__ __forceinline__ uint4 peaks_of_columns(const TILE& held) {
  uint4 found = {};
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
#pragma unroll
    for (int i = 0; i < 4; ++i) found = larger(found, held.raw[p][i]);
  }
  const auto other = [](uint32_t v) { return __vmaxu2(v, __shfl_xor_sync(~0u, v, 16)); };
  return {other(found.x), other(found.y), other(found.z), other(found.w)};
}

template <bool HALF, bool E5M2, bool POWER, bool SQUARE>
__global__ void __launch_bounds__(kThreads, 2) cast_tile(const Cast a, int tiles_k) {
  using Step = casts::Step<POWER>;
  __shared__ uint32_t words[kTile * kTile / 4];
  __shared__ uint4 of_warps[kThreads / 32][16];
  __shared__ Step of_columns[kTile];
  const int tile_k = blockIdx.x % tiles_k, tile_m = blockIdx.x / tiles_k, k = tile_k * kTile;
  const Place at = place_of(a, tile_m, 0);
  Tile<HALF, E5M2, POWER> held;
  held.load(first_of(a, at, tile_k, 0), a.x_stride, at.read, a.C - k);
  const Targets to = targets_of(a, at, tile_k, 0);
  Step square, steps[8];
  if (SQUARE || to.codes_t) {
    const uint4 peaks = peaks_of_columns(held);
    if (!held.upper) of_warps[held.warp][held.chunk] = peaks;
    __syncthreads();
    const auto* const each = reinterpret_cast<const uint16_t*>(of_warps);
    const int i = threadIdx.x % kTile;
    uint32_t peak = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) peak = max(peak, uint32_t{each[w * kTile + i]});
    if constexpr (SQUARE) {
      __shared__ uint32_t of_columns_together[kThreads / 32];
      peak = __reduce_max_sync(~0u, peak);
      if (threadIdx.x % 32 == 0) of_columns_together[held.warp] = peak;
      __syncthreads();
      peak = 0;
#pragma unroll
      for (int w = 0; w < kTile / 32; ++w) peak = max(peak, of_columns_together[w]);
      const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(peak));
      square = Step(scale);
      const int tiles_m = (a.rows + kTile - 1) / kTile;
      if (threadIdx.x == 0 && a.codes) a.scale[int64_t{tile_m} * tiles_k + tile_k] = scale;
      if (threadIdx.x == 0 && a.codes_t) a.scale_t[int64_t{tile_k} * tiles_m + tile_m] = scale;
#pragma unroll
      for (int j = 0; j < 8; ++j) steps[j] = square;
    } else {
      if (static_cast<int>(threadIdx.x) < to.columns) {
        const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(peak));
        of_columns[i] = Step(scale);
        a.scale_t[int64_t{tile_m} * a.columns + k + i] = scale;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 8; ++j) steps[j] = of_columns[8 * held.chunk + j];
    }
  }
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
    float v[4][8];
    held.widen(p, v);
    if (to.codes) {
      uint32_t two[2];
      if constexpr (!SQUARE) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // the halves of rows 2 i and 2 i + 1 beside each other
          const uint32_t low = largest_of(held.raw[p][2 * i]), high = largest_of(held.raw[p][2 * i + 1]);
          two[i] = __vmaxu2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
#pragma unroll
          for (int s = 1; s < 16; s *= 2) two[i] = __vmaxu2(two[i], __shfl_xor_sync(~0u, two[i], s));
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = held.row(p) + r;
        Step step = square;
        if constexpr (!SQUARE) {
          const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(two[r / 2] >> r % 2 * 16 & 0xffff));
          step = Step(scale);
          if (held.chunk == 0 && row < to.rows) a.scale[int64_t{tile_k} * a.rows + at.row + row] = scale;
        }
        if (row < to.rows && 8 * held.chunk < to.columns)
          held.store_row(v[r], step, to.codes + int64_t{row} * a.columns + 8 * held.chunk);
      }
    }
    if (to.codes_t) held.put_columns(p, v, steps, words);
  }
  if (!to.codes_t) return;
  __syncthreads();
  held.store_columns(words, to.codes_t, to.pitch, to.columns, to.places);
}

template <bool HALF, bool E5M2, bool POWER>
struct Kernel {
  static cudaError_t start(Grid& grid, const Cast& a) {
    const int tiles_k = (a.columns + kTile - 1) / kTile;
    return a.scales == Scales::squares ? grid.start(cast_tile<HALF, E5M2, POWER, true>, a, tiles_k)
                                       : grid.start(cast_tile<HALF, E5M2, POWER, false>, a, tiles_k);
  }
};

}  // namespace

cudaError_t cast_blocks(const Cast& a, cudaStream_t stream) {
  const int64_t tiles = (int64_t{a.columns} + kTile - 1) / kTile * ((a.rows + kTile - 1) / kTile);
  Grid grid(static_cast<unsigned>(tiles), kThreads, 0, stream);
  return start<Kernel>(grid, a);
}

}  // namespace ao::casts
