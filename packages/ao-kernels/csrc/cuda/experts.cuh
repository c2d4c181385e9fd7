// Which expert a tile of tokens belongs to, on the device: prefix sums over the experts' tiles.
#pragma once
#include "cuda/experts.h"

namespace ao {

struct Rows {
  int expert;       // E: the rows of no expert
  int first, stop;  // of the tile, and the end of the expert's rows
};

__device__ __forceinline__ int expert_begin(const Experts& a, int e) { return e == 0 ? 0 : e > a.E ? a.T : min(a.offsets[e - 1], a.T); }

// Tiles of expert e, which may be E or beyond.
__device__ __forceinline__ int expert_tiles(const Experts& a, int e, int tokens) {
  if (e > a.E) return 0;
  const int begin = expert_begin(a, e), end = e == a.E ? a.T : min(a.offsets[e], a.T);
  return end > begin ? (end - begin + tokens - 1) / tokens : 0;
}

__device__ __forceinline__ int inclusive_sum(int v, int lane) {
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const int before = __shfl_up_sync(~0u, v, s);
    if (lane >= s) v += before;
  }
  return v;
}

// Where the tiles of all experts end: upto (E + 1 ints of shared memory). One warp.
__device__ inline void count_tiles(const Experts& a, int tokens, int* upto) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base <= a.E; base += 32) {
    const int e = base + lane, sum = before + inclusive_sum(expert_tiles(a, e, tokens), lane);
    if (e <= a.E) upto[e] = sum;
    before = __shfl_sync(~0u, sum, 31);
  }
}

// The rows of a tile below upto[E].
__device__ inline Rows rows_of_tile(const Experts& a, int tokens, const int* upto, int tile) {
  int low = 0, high = a.E;  // the first expert whose tiles end behind this one
  while (low < high) {
    const int middle = (low + high) / 2;
    if (upto[middle] > tile) high = middle;
    else low = middle + 1;
  }
  const int before = low ? upto[low - 1] : 0;
  return {low, expert_begin(a, low) + (tile - before) * tokens, low == a.E ? a.T : min(a.offsets[low], a.T)};
}

// The same for one tile without a table, one warp; expert -1 for tiles behind the last one.
__device__ inline Rows rows_of_tile(const Experts& a, int tokens, int tile) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base <= a.E; base += 32) {
    const int e = base + lane, n = expert_tiles(a, e, tokens), sum = before + inclusive_sum(n, lane);
    const uint32_t behind = __ballot_sync(~0u, sum > tile);
    if (behind) {
      const int owner = __ffs(behind) - 1, found = base + owner;
      const int within = tile - __shfl_sync(~0u, sum - n, owner);
      return {found, expert_begin(a, found) + within * tokens, found == a.E ? a.T : min(a.offsets[found], a.T)};
    }
    before = __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0, 0};
}

struct TilePlace {
  int m, n;  // rows of tiles
};

// Tiles are worked off in groups of so many along the tokens, so that what is read by those in flight stays in L2.
constexpr int kTilesTogether = 8;

__device__ inline TilePlace place_together(int tile, int tiles_m, int tiles_n) {
  const int of_group = kTilesTogether * tiles_n, first = tile / of_group * kTilesTogether, within = tile % of_group;
  const int width = min(kTilesTogether, tiles_m - first);
  return {first + within % width, within / width};
}

// Zeros in rows [first, stop) and columns [n, n + columns) of y (T, N), whose values have `bytes`. THREADS threads from thread 0 on.
__device__ inline void clear_rows(void* y, int bytes, int64_t N, int first, int stop, int n, int columns, int thread, int threads) {
  const int width = static_cast<int>(min(int64_t{columns}, N - n));
  if (width <= 0) return;
  for (int i = thread; i < (stop - first) * width; i += threads) {
    const int64_t at = (first + i / width) * N + n + i % width;
    if (bytes == 4) static_cast<uint32_t*>(y)[at] = 0;
    else static_cast<uint16_t*>(y)[at] = 0;
  }
}

}  // namespace ao
