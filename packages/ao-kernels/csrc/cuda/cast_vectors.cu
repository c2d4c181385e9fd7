// Codes with scales of rows and, independently, of columns, whose peaks are known: tiles backwards, for what was read last is still in L2.
#include "cuda/cast_tiles.cuh"

namespace ao::casts {
namespace {

// What belongs to no tile of experts' tokens: scales of columns, zeros in the places behind the last end, and the padding of the rows.
template <bool E5M2, bool POWER>
__device__ inline void finish_experts(const Cast& a, int block, int blocks) {
  const int64_t first = int64_t{block} * kThreads + threadIdx.x, step = int64_t{blocks} * kThreads;
  for (int64_t at = first; at < int64_t{a.experts.E} * a.columns; at += step) a.scale_t[at] = scale_of<E5M2, POWER>(a.peaks_t[at]);
  const int64_t end = a.ends[a.experts.E - 1], pieces = (a.places - end) / 16;
  for (int64_t at = first; at < pieces * a.columns; at += step)
    *reinterpret_cast<uint4*>(a.codes_t + at / pieces * a.places + end + at % pieces * 16) = {};
  if (!a.codes) return;
  for (int64_t at = first; at < int64_t{a.rows - a.R} * a.columns / 16; at += step)
    reinterpret_cast<uint4*>(a.codes + int64_t{a.R} * a.columns)[at] = {};
  if (first < a.rows - a.R) a.scale[a.R + first] = scale_of<E5M2, POWER>(0);
}

template <bool HALF, bool E5M2, bool POWER>
__global__ void __launch_bounds__(kThreads, 3) cast_tile(const Cast a, int tiles, int tiles_k) {
  using Step = casts::Step<POWER>;
  __shared__ uint32_t words[kTile * kTile / 4];
  __shared__ Step of_rows[kTile], of_columns[kTile];
  if (static_cast<int>(blockIdx.x) >= tiles) {
    wait_for_earlier_grids();
    return finish_experts<E5M2, POWER>(a, blockIdx.x - tiles, gridDim.x - tiles);
  }
  const int tile = tiles - 1 - blockIdx.x, tile_k = tile % tiles_k, matrix = gridDim.y - 1 - blockIdx.y;
  const Place at = place_of(a, tile / tiles_k, matrix);
  if (at.nothing) return;
  const int k = tile_k * kTile;
  Tile<HALF, E5M2, POWER> held;
  held.load(first_of(a, at, tile_k, matrix), a.x_stride, at.read, a.C - k);  // what is in front of the peaks has ended
  wait_for_earlier_grids();
  const Targets to = targets_of(a, at, tile_k, matrix);
  const int i = threadIdx.x % kTile;
  if (static_cast<int>(threadIdx.x) < kTile) {
    if (to.codes && i < to.rows) {
      const int64_t m = int64_t{matrix} * a.rows + at.row + i;
      const float scale = scale_of<E5M2, POWER>(a.peaks[m]);
      of_rows[i] = Step(scale);
      if (tile_k == 0) a.scale[m] = scale;
    }
  } else if (to.codes_t && i < to.columns) {
    const int64_t n = int64_t{at.vector} * a.columns + k + i;
    const float scale = scale_of<E5M2, POWER>(a.peaks_t[n]);
    of_columns[i] = Step(scale);
    if (!a.experts.offsets && at.row == 0) a.scale_t[n] = scale;
  }
  __syncthreads();
  Step steps[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) steps[j] = of_columns[8 * held.chunk + j];
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
    float v[4][8];
    held.widen(p, v);
    if (to.codes && 8 * held.chunk < to.columns) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = held.row(p) + r;
        if (row < to.rows) held.store_row(v[r], of_rows[row], to.codes + int64_t{row} * a.columns + 8 * held.chunk);
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
    const int64_t tiles = a.experts.offsets ? most_tiles(a.experts, kTile) : (a.rows + kTile - 1) / kTile;
    return grid.start(cast_tile<HALF, E5M2, POWER>, a, static_cast<int>(tiles * tiles_k), tiles_k);
  }
};

}  // namespace

cudaError_t cast_vectors(const Cast& a, int multiprocessors, cudaStream_t stream) {
  const int tiles_k = (a.columns + kTile - 1) / kTile;
  int64_t blocks = tiles_k * (a.experts.offsets ? most_tiles(a.experts, kTile) : (a.rows + kTile - 1) / kTile);
  if (a.experts.offsets) blocks += multiprocessors;
  Grid grid({static_cast<unsigned>(blocks), static_cast<unsigned>(a.matrices)}, kThreads, 0, stream);
  grid.early();
  return start<Kernel>(grid, a);
}

}  // namespace ao::casts
