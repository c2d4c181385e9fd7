// Codes with scales of blocks: a tile is a block of 128 x 128, or holds those of 1 x 128 of both directions.
#include "cuda/cast_tiles.cuh"

namespace ao::casts {
namespace {

__device__ __forceinline__ uint4 larger(const uint4& a, const uint4& raw) {
  return {__vmaxu2(a.x, magnitudes(raw.x)), __vmaxu2(a.y, magnitudes(raw.y)), __vmaxu2(a.z, magnitudes(raw.z)), __vmaxu2(a.w, magnitudes(raw.w))};
}

__device__ __forceinline__ uint32_t largest_of(const uint4& raw) {
  return __vmaxu2(__vmaxu2(magnitudes(raw.x), magnitudes(raw.y)), __vmaxu2(magnitudes(raw.z), magnitudes(raw.w)));
}

// Of eight columns, by the rows of a warp.
__device__ __forceinline__ uint4 peaks_of_columns(const Lane& lane, const uint4* x) {
  uint4 found = {};
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
#pragma unroll
    for (int r = 0; r < 4; ++r) found = larger(found, x[(lane.row(p) + r) * kPieces + lane.chunk]);
  }
  const auto other = [](uint32_t v) { return __vmaxu2(v, __shfl_xor_sync(~0u, v, 16)); };
  return {other(found.x), other(found.y), other(found.z), other(found.w)};
}

template <bool HALF, bool E5M2, bool POWER, bool SQUARE>
__global__ void __launch_bounds__(kThreads, kBlocks) cast_tiles(const Cast a, int tiles, int tiles_k) {
  using Step = casts::Step<POWER>;
  constexpr int kWarps = kThreads / 32;
  extern __shared__ uint4 shared[];
  __shared__ uint4 of_warps[kWarps][kPieces];
  __shared__ uint32_t together[kWarps];
  __shared__ Step of_columns[kTile];
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared + 2 * kTileBytes / 16);
  const Lane lane;
  const int tiles_m = tiles / tiles_k;
  int tile = blockIdx.x;
  Work work = work_of(a, tile, tiles, tiles_k);
  fetch(a, work, shared);
  commit_copies();
  for (int buffer = 0; tile < tiles; buffer ^= 1) {
    const int next = tile + gridDim.x, tile_m = tile / tiles_k;
    const Work coming = work_of(a, next < tiles ? next : -1, tiles, tiles_k);
    if (coming.exists) fetch(a, coming, shared + (buffer ^ 1) * kTileBytes / 16);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const uint4* const x = shared + buffer * kTileBytes / 16;
    uint8_t *const codes = codes_of(a, work), *const codes_t = transposed_of(a, work);
    Step square, steps[8];
    if (SQUARE || codes_t) {
      const uint4 peaks = peaks_of_columns(lane, x);
      if (!lane.upper) of_warps[lane.warp][lane.chunk] = peaks;
      __syncthreads();
      const auto* const each = reinterpret_cast<const uint16_t*>(of_warps);
      const int i = threadIdx.x % kTile;
      uint32_t peak = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) peak = max(peak, uint32_t{each[w * kTile + i]});
      if constexpr (SQUARE) {
        peak = __reduce_max_sync(~0u, peak);
        if (threadIdx.x % 32 == 0) together[lane.warp] = peak;
        __syncthreads();
        peak = 0;
#pragma unroll
        for (int w = 0; w < kTile / 32; ++w) peak = max(peak, together[w]);
        const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(peak));
        square = Step(scale);
        if (threadIdx.x == 0 && a.codes) a.scale[tile] = scale;
        if (threadIdx.x == 0 && a.codes_t) a.scale_t[int64_t{work.tile_k} * tiles_m + tile_m] = scale;
#pragma unroll
        for (int j = 0; j < 8; ++j) steps[j] = square;
      } else {
        if (static_cast<int>(threadIdx.x) < work.to_columns) {
          const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(peak));
          of_columns[i] = Step(scale);
          a.scale_t[int64_t{tile_m} * a.columns + work.k + i] = scale;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; ++j) steps[j] = of_columns[8 * lane.chunk + j];
      }
    }
#pragma unroll
    for (int p = 0; p < kPatches; ++p) {
      float v[4][8];
      uint32_t peaks[4], two[2];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const uint4 raw = x[(lane.row(p) + r) * kPieces + lane.chunk];
        widen<HALF>(raw, v[r]);
        peaks[r] = largest_of(raw);
      }
      if (codes) {
        if constexpr (!SQUARE) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // those of rows 2 i and 2 i + 1 beside each other
            two[i] = __vmaxu2(__byte_perm(peaks[2 * i], peaks[2 * i + 1], 0x5410), __byte_perm(peaks[2 * i], peaks[2 * i + 1], 0x7632));
#pragma unroll
            for (int s = 1; s < kPieces; s *= 2) two[i] = __vmaxu2(two[i], __shfl_xor_sync(~0u, two[i], s));
          }
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = lane.row(p) + r;
          Step step = square;
          if constexpr (!SQUARE) {
            const float scale = scale_of<E5M2, POWER>(peak_bits<HALF>(two[r / 2] >> r % 2 * 16 & 0xffff));
            step = Step(scale);
            if (lane.chunk == 0 && row < work.to_rows) a.scale[int64_t{work.tile_k} * a.rows + work.at.row + row] = scale;
          }
          if (row < work.to_rows && 8 * lane.chunk < work.to_columns)
            store_row<E5M2>(v[r], step, codes + int64_t{row} * a.columns + 8 * lane.chunk);
        }
      }
      if (codes_t) put_columns<E5M2>(lane, p, v, steps, words);
    }
    __syncthreads();
    if (codes_t) store_columns(words, codes_t, a.rows, work.to_columns, work.at.places);
    tile = next, work = coming;
  }
}

template <bool HALF, bool E5M2, bool POWER>
struct Kernel {
  static cudaError_t start(const Cast& a, int multiprocessors, bool early, cudaStream_t stream) {
    return a.scales == Scales::squares ? start_blocks<cast_tiles<HALF, E5M2, POWER, true>>(a, multiprocessors, early, stream)
                                       : start_blocks<cast_tiles<HALF, E5M2, POWER, false>>(a, multiprocessors, early, stream);
  }
};

}  // namespace

cudaError_t cast_blocks(const Cast& a, int multiprocessors, cudaStream_t stream) { return start<Kernel>(a, multiprocessors, false, stream); }

}  // namespace ao::casts
