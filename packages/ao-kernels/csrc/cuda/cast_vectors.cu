// Codes with scales of rows and, independently, of columns, whose peaks are known: tiles backwards, for what was read last is still in L2.
#include "cuda/cast_tiles.cuh"

namespace ao::casts {
namespace {

// What belongs to no tile of experts' tokens: scales of columns, zeros in the places behind the last end, and the padding of the rows.
template <bool E5M2, bool POWER>
__device__ inline void finish_experts(const Cast& a) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x, step = int64_t{gridDim.x} * kThreads;
  for (int64_t at = first; at < int64_t{a.experts.E} * a.columns; at += step) a.scale_t[at] = scale_of<E5M2, POWER>(a.peaks_t[at]);
  const int64_t end = a.ends[a.experts.E - 1], pieces = (a.places - end) / 16;
  for (int64_t at = first; at < pieces * a.columns; at += step)
    *reinterpret_cast<uint4*>(a.codes_t + at / pieces * a.places + end + at % pieces * 16) = {};
  if (!a.codes) return;
  for (int64_t at = first; at < int64_t{a.rows - a.R} * a.columns / 16; at += step)
    reinterpret_cast<uint4*>(a.codes + int64_t{a.R} * a.columns)[at] = {};
  if (first < a.rows - a.R) a.scale[a.R + first] = scale_of<E5M2, POWER>(0);
}

// Of this thread's row or column.
__device__ __forceinline__ uint32_t peak_of(const Cast& a, const Work& work) {
  const int i = threadIdx.x % kTile;
  if (!work.exists || static_cast<int>(threadIdx.x) >= 2 * kTile) return 0;
  if (static_cast<int>(threadIdx.x) < kTile)
    return a.codes && i < work.to_rows ? a.peaks[int64_t{work.matrix} * a.rows + work.at.row + i] : 0;
  return a.codes_t && work.at.vector >= 0 && i < work.to_columns ? a.peaks_t[int64_t{work.at.vector} * a.columns + work.k + i] : 0;
}

template <bool E5M2, bool POWER>
__device__ __forceinline__ Step<POWER> step_of(const Cast& a, const Work& work, uint32_t peak) {
  const int i = threadIdx.x % kTile;
  const float scale = scale_of<E5M2, POWER>(peak);
  if (static_cast<int>(threadIdx.x) < kTile) {
    if (a.codes && work.tile_k == 0 && i < work.to_rows) a.scale[int64_t{work.matrix} * a.rows + work.at.row + i] = scale;
  } else if (a.codes_t && !a.experts.offsets && work.at.row == 0 && i < work.to_columns) {
    a.scale_t[int64_t{work.at.vector} * a.columns + work.k + i] = scale;
  }
  return Step<POWER>(scale);
}

template <bool HALF, bool E5M2, bool POWER>
__global__ void __launch_bounds__(kThreads, kBlocks) cast_tiles(const Cast a, int tiles, int tiles_k) {
  using Step = casts::Step<POWER>;
  extern __shared__ uint4 shared[];
  static_assert(kThreads >= 2 * kTile);
  __shared__ Step all_steps[2 * kTile];  // of rows, of columns
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared + 2 * kTileBytes / 16);
  const Lane lane;
  int tile = tiles * a.matrices - 1 - blockIdx.x;
  Work work = work_of(a, tile, tiles, tiles_k);
  fetch(a, work, shared);  // all grids in front of that of the peaks have ended
  commit_copies();
  wait_for_earlier_grids();
  uint32_t peak = peak_of(a, work);
  if (a.experts.offsets) finish_experts<E5M2, POWER>(a);
  for (int buffer = 0; tile >= 0; buffer ^= 1) {
    const int next = tile - gridDim.x;
    const Work coming = work_of(a, next, tiles, tiles_k);
    if (coming.exists) fetch(a, coming, shared + (buffer ^ 1) * kTileBytes / 16);
    commit_copies();
    if (static_cast<int>(threadIdx.x) < 2 * kTile) all_steps[threadIdx.x] = step_of<E5M2, POWER>(a, work, peak);
    peak = peak_of(a, coming);
    wait_for_copies<1>();
    __syncthreads();
    if (work.exists) {
      const uint4* const x = shared + buffer * kTileBytes / 16;
      uint8_t *const codes = codes_of(a, work), *const codes_t = transposed_of(a, work);
      Step steps[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) steps[j] = all_steps[kTile + 8 * lane.chunk + j];
#pragma unroll
      for (int p = 0; p < kPatches; ++p) {
        float v[4][8];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = lane.row(p) + r;
          widen<HALF>(x[row * kPieces + lane.chunk], v[r]);
          if (codes && row < work.to_rows && 8 * lane.chunk < work.to_columns)
            store_row<E5M2>(v[r], all_steps[row], codes + int64_t{row} * a.columns + 8 * lane.chunk);
        }
        if (codes_t) put_columns<E5M2>(lane, p, v, steps, words);
      }
      __syncthreads();
      if (codes_t) store_columns(words, codes_t, a.experts.offsets ? a.places : a.rows, work.to_columns, work.at.places);
    } else {
      __syncthreads();
    }
    tile = next, work = coming;
  }
}

template <bool HALF, bool E5M2, bool POWER>
struct Kernel {
  static cudaError_t start(const Cast& a, int multiprocessors, bool early, cudaStream_t stream) {
    return start_blocks<cast_tiles<HALF, E5M2, POWER>>(a, multiprocessors, early, stream);
  }
};

}  // namespace

cudaError_t cast_vectors(const Cast& a, int multiprocessors, cudaStream_t stream) { return start<Kernel>(a, multiprocessors, true, stream); }

}  // namespace ao::casts
