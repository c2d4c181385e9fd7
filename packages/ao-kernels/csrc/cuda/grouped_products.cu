// Host side of grouped_products.cuh.
#include "cuda/grouped_products.cuh"

#include <climits>

#include "cuda/tensor_map.h"

namespace ao::bytes {

extern template cudaError_t launch_products<false>(const ProductLaunch&);
extern template cudaError_t launch_products<true>(const ProductLaunch&);

namespace {

// Rows of x of a tile. Fitted to an H200, decision 0032: promoted sums of rows are added faster with 128, and experts of few rows leave less of a tile empty.
int rows_of_x(const GroupedProduct& p) {
  if (forced_tile == 128 || forced_tile == 256) return forced_tile;
  if (p.over_places) return p.M > 128 ? 256 : 128;
  return p.fast_accum && rows_of_expert(p.experts) >= 512 ? 256 : 128;
}

int64_t most_tiles(const GroupedProduct& p, int rows) {
  return (p.N + 127) / 128 * (p.over_places ? p.experts.E * ((p.M + rows - 1) / rows) : most_tiles(p.experts, rows));
}

}  // namespace

bool takes(const GroupedProduct& p) {
  constexpr int64_t kMost = INT_MAX - 65536;  // of what is counted in an int, with a grid or a tile behind it
  const int64_t E = p.experts.E;
  return p.M > 0 && p.N > 0 && p.K > 0 && p.K % 16 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && E <= kMostExperts && p.M <= kMost &&
         p.K <= kMost && E * p.N <= kMost && most_tiles(p, 128) <= kMost;
}

cudaError_t launch(const GroupedProduct& p, const Device& device, cudaStream_t stream) {
  ProductLaunch l;
  l.rows = rows_of_x(p);
  l.most_tiles = most_tiles(p, l.rows);
  l.experts = p.experts;
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  l.args = {.x_scale = p.x_scale, .scale = p.scale, .y = p.y, .M = static_cast<int>(p.M), .N = static_cast<int>(p.N),
            .K = static_cast<int>(p.K), .y_dtype = p.y_dtype, .over_places = p.over_places};
  const int64_t codes_rows = p.over_places ? p.N : p.experts.E * p.N;
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.x, p.K, p.M, p.K, kStageK, 128, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.codes, p.K, codes_rows, p.K, kStageK, 128, CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  return p.fast_accum ? launch_products<false>(l) : launch_products<true>(l);
}

}  // namespace ao::bytes
