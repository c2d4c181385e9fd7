// The largest magnitudes of rows and columns. A warp reads 16 rows of 256 columns, eight rows at once: 128 KB of a multiprocessor are under way.
#include "cuda/cast_place.cuh"
#include "cuda/cast_steps.cuh"
#include "cuda/fragments.cuh"
#include "cuda/grid.h"

namespace ao::casts {
namespace {

constexpr int kWarps = 8, kColumns = 256, kTogether = 8;
static_assert(kWarps * 2 * kTogether == kTile);

// The ends of the experts' places: one warp.
__device__ inline void count_places(const Cast& a) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < a.experts.E; base += 32) {
    const int e = base + lane;
    const int n = e < a.experts.E ? kPlaces * expert_tiles(a.experts, e, kPlaces) : 0;
    const int upto = before + inclusive_sum(n, lane);
    if (e < a.experts.E) a.ends[e] = upto;
    before = __shfl_sync(~0u, upto, 31);
  }
}

template <bool HALF>
__global__ void __launch_bounds__(32 * kWarps) peaks_of_vectors(const Cast a) {
  __shared__ uint4 shared[kWarps][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int stripes = (a.C + kColumns - 1) / kColumns, stripe = blockIdx.x % stripes;
  let_later_grids_start();
  if (a.experts.offsets && blockIdx.x == 0 && warp == 0) count_places(a);
  const Place at = place_of(a, blockIdx.x / stripes);
  if (at.nothing) return;
  const int column = stripe * kColumns + 8 * lane;
  const uint16_t* const x = static_cast<const uint16_t*>(a.x) + at.row * a.x_stride + column;
  uint4 largest = {};
#pragma unroll
  for (int batch = 0; batch < 2; ++batch) {
    const int first = (2 * warp + batch) * kTogether;
    uint4 raw[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      raw[i] = {};
      if (first + i < at.read && column < a.C) raw[i] = *reinterpret_cast<const uint4*>(x + (first + i) * a.x_stride);
    }
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      raw[i] = {magnitudes(raw[i].x), magnitudes(raw[i].y), magnitudes(raw[i].z), magnitudes(raw[i].w)};
      largest = {__vmaxu2(largest.x, raw[i].x), __vmaxu2(largest.y, raw[i].y), __vmaxu2(largest.z, raw[i].z), __vmaxu2(largest.w, raw[i].w)};
      const uint32_t two = __vmaxu2(__vmaxu2(raw[i].x, raw[i].y), __vmaxu2(raw[i].z, raw[i].w));
      const uint32_t row = __reduce_max_sync(~0u, max(two & 0xffff, two >> 16));
      if (lane == i) mine = row;
    }
    if (a.peaks && lane < kTogether && first + lane < at.read)
      atomicMax(a.peaks + at.row + first + lane, peak_bits<HALF>(mine));
  }
  if (!a.peaks_t || at.vector < 0) return;
  shared[warp][lane] = largest;
  __syncthreads();
  const auto* const each = reinterpret_cast<const uint16_t*>(shared);
  uint32_t peak = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) peak = max(peak, uint32_t{each[i * kColumns + threadIdx.x]});
  const int k = stripe * kColumns + threadIdx.x;
  if (k < a.C) atomicMax(a.peaks_t + int64_t{at.vector} * a.columns + k, peak_bits<HALF>(peak));
}

}  // namespace

cudaError_t find_peaks(const Cast& a, cudaStream_t stream) {
  const int64_t tiles = a.experts.offsets ? most_tiles(a.experts, kTile) : (a.rows + kTile - 1) / kTile;
  const int64_t stripes = (a.C + kColumns - 1) / kColumns;
  Grid grid(static_cast<unsigned>(tiles * stripes), 32 * kWarps, 0, stream);
  return grid.start(a.half ? peaks_of_vectors<true> : peaks_of_vectors<false>, a);
}

}  // namespace ao::casts
