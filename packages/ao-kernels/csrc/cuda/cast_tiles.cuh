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

constexpr int kThreads = 2 * kTile;  // one a row and one a column
constexpr int kWarps = kThreads / 32, kPatches = kTile / (8 * kWarps), kPieces = kTile / 8;  // pieces of 16 bytes of a row
constexpr int kTileBytes = kTile * kTile * 2, kSharedBytes = 2 * kTileBytes + kTile * kTile;
constexpr int kBlocks = 2;  // of a multiprocessor
constexpr int kBand = 32;   // tiles

struct Work {
  Place at;
  int tile_m = 0, tile_k = 0;
  int rows = 0, columns = 0;  // to be written
  bool exists = false, whole = false;
};

// The tiles of a block of threads, `step` apart: along the columns of a band of them, then along the rows, band after band. So what is written at
// the same time is long in both directions. Divisions only where a band begins.
struct Turn {
  int m = 0, k = 0, first = 0, width = 0, step_m = 0, step_k = 0;
  int step, tiles_m, tiles_k, band;
  bool backwards;

  __device__ Turn(int at, int step, int tiles_m, int tiles_k, int band, bool backwards)
      : step(step), tiles_m(tiles_m), tiles_k(tiles_k), band(band), backwards(backwards) {
    enter(at);
  }
  __device__ __forceinline__ bool exists() const { return first < tiles_k; }
  __device__ __forceinline__ int tile_m() const { return backwards ? tiles_m - 1 - m : m; }
  __device__ __forceinline__ int tile_k() const { return backwards ? tiles_k - 1 - first - k : first + k; }
  __device__ __forceinline__ void advance() {
    m += step_m, k += step_k;
    if (k >= width) k -= width, ++m;
    if (m < tiles_m) return;
    const int behind = (m - tiles_m) * width + k;
    first += width;
    enter(behind);
  }

 private:
  __device__ void enter(int at) {
    for (; first < tiles_k; at -= width * tiles_m, first += width) {
      width = min(band, tiles_k - first);
      if (at >= width * tiles_m) continue;
      m = at / width, k = at % width, step_m = step / width, step_k = step % width;
      return;
    }
  }
};

__device__ __forceinline__ Work work_of(const Cast& a, const Turn& turn) {
  Work found;
  if (!turn.exists()) return found;
  found.tile_m = turn.tile_m(), found.tile_k = turn.tile_k();
  found.at = place_of(a, found.tile_m);
  found.exists = !found.at.nothing;
  found.rows = a.experts.offsets ? found.at.read : min(kTile, a.rows - found.at.row);
  found.columns = min(kTile, a.columns - found.tile_k * kTile);
  found.whole = found.exists && found.at.read == kTile && found.columns == kTile && found.at.places == kTile;
  return found;
}

struct Lane {
  int warp = threadIdx.x / 32, chunk = threadIdx.x % 16, upper = threadIdx.x % 32 / 16;

  __device__ __forceinline__ int pair(int patch) const { return patch * kWarps + warp; }  // of groups of four rows
  __device__ __forceinline__ int row(int patch) const { return 8 * pair(patch) + 4 * upper; }
};

// What this thread will work on, so that nobody has to wait for others' copies; zeros outside of the tile.
__device__ __forceinline__ void fetch(const Cast& a, const Work& work, uint4* shared) {
  const Lane lane;
  const int column = work.tile_k * kTile + 8 * lane.chunk;
  const int rows = work.exists && column < a.C ? work.at.read : 0;
  const uint16_t* const x = static_cast<const uint16_t*>(a.x) + int64_t{work.at.row} * a.x_stride + column;
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = lane.row(p) + r;
      copy_async<16>(shared + row * kPieces + lane.chunk, x + row * a.x_stride, row < rows);
    }
  }
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

// Words of a column are 8 * 32 apart for every two; a half warp writes, and later reads, all banks once.
__device__ __forceinline__ int word(int pair, int j, int chunk) { return (pair * 8 + j) * 32 + (chunk + (pair & ~1)) % 16 * 2; }

// Codes by rows to memory, words of the transposed ones to `words`. WHOLE: no rows and columns are left out.
template <bool HALF, bool E5M2, bool POWER, bool LIFTED, bool WHOLE>
__device__ __forceinline__ void convert(const Cast& a, const Work& work, const uint4* x, const Step<POWER>* steps, uint32_t* words) {
  const Lane lane;
  uint8_t* codes = nullptr;
  if (a.codes) codes = a.codes + int64_t{work.at.row + lane.row(0)} * a.columns + work.tile_k * kTile + 8 * lane.chunk;
  const bool by_row = a.codes && (WHOLE || 8 * lane.chunk < work.columns), by_column = a.codes_t && work.at.vector >= 0;
  Step<POWER> of_columns[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) of_columns[j] = steps[kTile + 8 * lane.chunk + j];
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
    float v[4][8];
#pragma unroll
    for (int r = 0; r < 4; ++r) widen<HALF>(x[(lane.row(p) + r) * kPieces + lane.chunk], v[r]);
    if (by_row) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const Step<POWER> step = steps[lane.row(p) + r];
        uint2 found;
        found.x = Codes<E5M2>::four(step.template of<LIFTED>(v[r][0]), step.template of<LIFTED>(v[r][1]), step.template of<LIFTED>(v[r][2]),
                                    step.template of<LIFTED>(v[r][3]));
        found.y = Codes<E5M2>::four(step.template of<LIFTED>(v[r][4]), step.template of<LIFTED>(v[r][5]), step.template of<LIFTED>(v[r][6]),
                                    step.template of<LIFTED>(v[r][7]));
        if (WHOLE || lane.row(p) + r < work.rows) *reinterpret_cast<uint2*>(codes + (8 * kWarps * p + r) * int64_t{a.columns}) = found;
      }
    }
    if (by_column) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const Step<POWER>& step = of_columns[j];
        words[word(lane.pair(p), j, lane.chunk) + lane.upper] =
            Codes<E5M2>::four(step.template of<LIFTED>(v[0][j]), step.template of<LIFTED>(v[1][j]), step.template of<LIFTED>(v[2][j]),
                              step.template of<LIFTED>(v[3][j]));
      }
    }
  }
}

__device__ __forceinline__ void store_columns(const Cast& a, const Work& work, const uint32_t* words) {
  const int64_t pitch = a.experts.offsets ? a.places : a.rows;
  const int q = threadIdx.x % 8, first = threadIdx.x / 8;  // column: bit 0 and bits from 4 on are a chunk's, those between its element
  const int chunk = first % 2 + first / 16 * 2, j = first / 2 % 8;
  uint8_t* to = a.codes_t + int64_t{work.tile_k * kTile + 8 * chunk + j} * pitch + first_place(a, work.at) + 16 * q;
  constexpr int kColumns = kThreads / 8;
#pragma unroll
  for (int column = 0; column < kTile; column += kColumns, to += kColumns * pitch) {
    const int c = chunk + column / 8;
    const uint2 low = *reinterpret_cast<const uint2*>(words + word(2 * q, j, c));
    const uint2 high = *reinterpret_cast<const uint2*>(words + word(2 * q + 1, j, c));
    if (8 * c + j < work.columns && 16 * q < work.at.places) *reinterpret_cast<uint4*>(to) = {low.x, low.y, high.x, high.y};
  }
}

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

// Of vectors: the peak of this thread's row or column, which was found before.
__device__ __forceinline__ uint32_t known_peak(const Cast& a, const Work& work) {
  const int i = threadIdx.x % kTile;
  if (!work.exists) return 0;
  if (static_cast<int>(threadIdx.x) < kTile)
    return a.codes && i < work.rows ? a.peaks[work.at.row + i] : 0;
  return a.codes_t && work.at.vector >= 0 && i < work.columns ? a.peaks_t[int64_t{work.at.vector} * a.columns + work.tile_k * kTile + i] : 0;
}

// Where it is kept; by one tile of those that share it.
template <Scales SCALES>
__device__ __forceinline__ void keep_scale(const Cast& a, const Work& work, int tiles_m, int tiles_k, float scale) {
  const int i = threadIdx.x % kTile;
  const bool of_row = static_cast<int>(threadIdx.x) < kTile;
  float* const to = of_row ? a.scale : a.scale_t;
  if (!(of_row ? a.codes : a.codes_t) || i >= (of_row ? work.rows : work.columns)) return;
  const int64_t row = work.at.row + i, column = work.tile_k * kTile + i;
  if constexpr (SCALES == Scales::squares) {
    if (i == 0) to[of_row ? int64_t{work.tile_m} * tiles_k + work.tile_k : int64_t{work.tile_k} * tiles_m + work.tile_m] = scale;
  } else if constexpr (SCALES == Scales::row_blocks) {
    to[of_row ? int64_t{work.tile_k} * a.rows + row : int64_t{work.tile_m} * a.columns + column] = scale;
  } else {
    if (of_row && work.tile_k == 0) to[row] = scale;
    if (!of_row && work.tile_m == 0 && !a.experts.offsets) to[column] = scale;
  }
}

// Of blocks: 16-bit magnitudes of the rows and, by warps, of the columns of a tile.
struct Found {
  uint16_t rows[kTile];
  uint4 columns[kWarps][kPieces];

  __device__ __forceinline__ void look(const uint4* x) {
    const Lane lane;
    uint4 largest = {};
#pragma unroll
    for (int p = 0; p < kPatches; ++p) {
      uint32_t row[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const uint4 raw = x[(lane.row(p) + r) * kPieces + lane.chunk];
        const uint4 size = {magnitudes(raw.x), magnitudes(raw.y), magnitudes(raw.z), magnitudes(raw.w)};
        largest = {__vmaxu2(largest.x, size.x), __vmaxu2(largest.y, size.y), __vmaxu2(largest.z, size.z), __vmaxu2(largest.w, size.w)};
        row[r] = __vmaxu2(__vmaxu2(size.x, size.y), __vmaxu2(size.z, size.w));
      }
      uint32_t two[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // those of rows 2 i and 2 i + 1 beside each other
        two[i] = __vmaxu2(__byte_perm(row[2 * i], row[2 * i + 1], 0x5410), __byte_perm(row[2 * i], row[2 * i + 1], 0x7632));
#pragma unroll
        for (int s = 1; s < kPieces; s *= 2) two[i] = __vmaxu2(two[i], __shfl_xor_sync(~0u, two[i], s));
      }
      if (lane.chunk == 0) *reinterpret_cast<uint2*>(rows + lane.row(p)) = {two[0], two[1]};
    }
    const auto other = [](uint32_t v) { return __vmaxu2(v, __shfl_xor_sync(~0u, v, 16)); };
    largest = {other(largest.x), other(largest.y), other(largest.z), other(largest.w)};
    if (!lane.upper) columns[lane.warp][lane.chunk] = largest;
  }

  // Of this thread's row or column.
  __device__ __forceinline__ uint32_t mine() const {
    const int i = threadIdx.x % kTile;
    if (static_cast<int>(threadIdx.x) < kTile) return rows[i];
    uint32_t peak = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) peak = max(peak, uint32_t{reinterpret_cast<const uint16_t*>(columns[w])[i]});
    return peak;
  }
};

template <bool HALF, bool E5M2, bool POWER, Scales SCALES>
__global__ void __launch_bounds__(kThreads, kBlocks) cast_tiles(const Cast a, int tiles_m, int tiles_k) {
  constexpr bool kKnown = SCALES == Scales::vectors;
  extern __shared__ uint4 shared[];
  __shared__ Step<POWER> steps[kThreads];
  __shared__ Found blocks;
  __shared__ uint32_t of_warps[kWarps];
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared + 2 * kTileBytes / 16);
  // What was read last for the peaks is still in L2.
  Turn turn(blockIdx.x, gridDim.x, tiles_m, tiles_k, kKnown ? tiles_k : kBand, kKnown);
  Work work = work_of(a, turn);
  fetch(a, work, shared);  // all grids in front of that of the peaks have ended
  commit_copies();
  uint32_t peak = 0;
  if constexpr (kKnown) {
    wait_for_earlier_grids();
    peak = known_peak(a, work);
    if (a.experts.offsets) finish_experts<E5M2, POWER>(a);
  }
  for (int buffer = 0; turn.exists(); buffer ^= 1) {
    turn.advance();
    const Work coming = work_of(a, turn);
    if (coming.exists) fetch(a, coming, shared + (buffer ^ 1) * kTileBytes / 16);
    commit_copies();
    const uint4* const x = shared + buffer * kTileBytes / 16;
    if constexpr (!kKnown) {
      wait_for_copies<1>();
      blocks.look(x);
      __syncthreads();
      peak = blocks.mine();
      if constexpr (SCALES == Scales::squares) {
        peak = __reduce_max_sync(~0u, peak);
        if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = peak;
        __syncthreads();
#pragma unroll
        for (int w = 0; w < kWarps; ++w) peak = max(peak, of_warps[w]);
      }
      peak = peak_bits<HALF>(peak);
    }
    const float scale = scale_of<E5M2, POWER>(peak);
    steps[threadIdx.x] = Step<POWER>(scale);
    if (work.exists) keep_scale<SCALES>(a, work, tiles_m, tiles_k, scale);
    if constexpr (kKnown) {
      peak = known_peak(a, coming);
      wait_for_copies<1>();
    }
    const bool lifted = __syncthreads_or(steps[threadIdx.x].is_lifted());
    if (work.whole && !lifted) convert<HALF, E5M2, POWER, false, true>(a, work, x, steps, words);
    else if (work.exists) convert<HALF, E5M2, POWER, !POWER, false>(a, work, x, steps, words);
    __syncthreads();
    if (work.exists && a.codes_t && work.at.vector >= 0) store_columns(a, work, words);
    work = coming;
  }
}

// As many blocks of threads as run at once, or as there are tiles.
template <bool HALF, bool E5M2, bool POWER, Scales SCALES>
cudaError_t start(const Cast& a, int multiprocessors, cudaStream_t stream) {
  constexpr auto kKernel = cast_tiles<HALF, E5M2, POWER, SCALES>;
  const int64_t tiles_m = a.experts.offsets ? most_tiles(a.experts, kTile) : (a.rows + kTile - 1) / kTile, tiles_k = (a.columns + kTile - 1) / kTile;
  const int64_t all = tiles_m * tiles_k, most = kBlocks * multiprocessors;
  if (const cudaError_t error = allow_shared_memory<kKernel>(kSharedBytes)) return error;
  Grid grid(static_cast<unsigned>(all < most ? all : most), kThreads, kSharedBytes, stream);
  if (SCALES == Scales::vectors) grid.early();
  return grid.start(kKernel, a, static_cast<int>(tiles_m), static_cast<int>(tiles_k));
}

template <Scales SCALES>
cudaError_t start(const Cast& a, int multiprocessors, cudaStream_t stream) {
  const auto of = [&]<bool HALF, bool E5M2>() {
    return a.power_of_two ? start<HALF, E5M2, true, SCALES>(a, multiprocessors, stream) : start<HALF, E5M2, false, SCALES>(a, multiprocessors, stream);
  };
  if (a.half) return a.e5m2 ? of.template operator()<true, true>() : of.template operator()<true, false>();
  return a.e5m2 ? of.template operator()<false, true>() : of.template operator()<false, false>();
}

}  // namespace ao::casts
