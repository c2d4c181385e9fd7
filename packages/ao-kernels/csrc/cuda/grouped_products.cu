// Host side of grouped_products.cuh.
#include "cuda/grouped_products.cuh"

#include <climits>
#include <cmath>

#include "cuda/tensor_map.h"

namespace ao::bytes {

extern template cudaError_t launch_products<false, 1>(const ProductLaunch&);
extern template cudaError_t launch_products<false, 2>(const ProductLaunch&);
extern template cudaError_t launch_products<true, 1>(const ProductLaunch&);
extern template cudaError_t launch_products<true, 2>(const ProductLaunch&);

namespace {

constexpr int kApart = 2;  // stages between the warpgroups of a CTA

// Rows of x of a tile. One of 256 does half of the work where an expert's rows leave its second half empty, so smaller tiles are for small experts only.
int rows_of_x(const GroupedProduct& p) {
  if (forced_tile == 128 || forced_tile == 256) return forced_tile;
  if (p.over_places) return p.M > 128 ? 256 : 128;
  const double rows = static_cast<double>(rows_of_expert(p.experts));
  return rows + 2 * std::sqrt(rows) > 128 ? 256 : 128;  // nearly all of the experts
}

int64_t most_clusters(const GroupedProduct& p, int rows, int cluster) {
  const int64_t across = (p.N + 128 * cluster - 1) / (128 * cluster);
  return across * (p.over_places ? p.experts.E * ((p.M + rows - 1) / rows) : most_tiles(p.experts, rows));
}

}  // namespace

bool takes(const GroupedProduct& p) {
  constexpr int64_t kMost = INT_MAX - 65536;  // of what is counted in an int, with a grid or a tile behind it
  const int64_t E = p.experts.E;
  return p.M > 0 && p.N > 0 && p.K > 0 && p.K % 16 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && E <= kMostExperts && p.M <= kMost &&
         p.K <= kMost && E * p.N <= kMost && most_clusters(p, 128, 1) <= kMost;
}

cudaError_t launch(const GroupedProduct& p, const Device& device, cudaStream_t stream) {
  ProductLaunch l;
  l.rows = rows_of_x(p);
  l.cluster = forced_product.cluster == 1 ? 1 : 2;
  l.held = forced_product.held;
  l.most_tiles = most_clusters(p, l.rows, l.cluster);
  l.experts = p.experts;
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  const int apart = forced_product.apart >= 0 ? forced_product.apart : kApart;
  l.args = {.x_scale = p.x_scale, .scale = p.scale, .y = p.y, .M = static_cast<int>(p.M), .N = static_cast<int>(p.N),
            .K = static_cast<int>(p.K), .y_dtype = p.y_dtype, .over_places = p.over_places, .apart = apart};
  const int64_t codes_rows = p.over_places ? p.N : p.experts.E * p.N;
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.x, p.K, p.M, p.K, kStageK, l.rows / l.cluster, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.codes, p.K, codes_rows, p.K, kStageK, 128, CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  if (l.cluster == 1) return p.fast_accum ? launch_products<false, 1>(l) : launch_products<true, 1>(l);
  return p.fast_accum ? launch_products<false, 2>(l) : launch_products<true, 2>(l);
}

}  // namespace ao::bytes
