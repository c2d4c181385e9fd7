// Products of float8 operands of experts: Consumer of byte_consumer.cuh, over tiles that CTAs find from the experts' ends.
#pragma once
#include "cuda/byte_consumer.cuh"
#include "cuda/experts.cuh"
#include "cuda/fragments.cuh"
#include "cuda/grid.h"
#include "cuda/grouped_products.h"

namespace ao::bytes {

template <int BM_, int STAGES_, bool PROMOTES_>
struct ProductTile : Tile<E4m3, 2, BM_, STAGES_, 1, false, PROMOTES_> {
  using Base = Tile<E4m3, 2, BM_, STAGES_, 1, false, PROMOTES_>;
  static constexpr int kBox = 128;  // rows of x that are fetched together
  static constexpr int kBuffers = 2;
  static constexpr int kEpilogue = store_bytes(Base::CONSUMERS, BM_, kBuffers);
  static constexpr int kTileScales = BM_ + 64 + 4;  // a warpgroup's: of rows of x, of its rows of codes, and where the tile lies
  static constexpr int kFullAt = Base::kRing + kEpilogue + 4 * Base::CONSUMERS * kTileScales, kUptoAt = kFullAt + 16 * STAGES_;
  static constexpr int kShared = 1024 + kUptoAt;  // and 4 bytes an expert
  static_assert(kShared + 4 * (kMostExperts + 1) <= 227 * 1024);
};

struct ProductGrid {
  const float *x_scale, *scale;
  void* y;
  int M, N, K;
  DType y_dtype;
  bool over_places;
};

// Where a tile lies.
struct Work {
  int expert;        // E: the rows of no expert
  int m, stop;       // first row of x, and where the expert's rows end
  int n, codes_row;  // first row of codes, of the expert's and of all
  int first, size;   // of the sums: places or features

  // Whether rows of x fill no more than the first half of a tile of 256: then the other half is neither fetched nor multiplied.
  template <class T>
  __device__ bool half() const { return T::BM == 256 && stop - m <= 128; }
};

template <class T>
class Tiles {
 public:
  // `upto` (E + 1 ints) has been filled by count_tiles, unless sums run over places.
  __device__ Tiles(const ProductGrid& a, const Experts& experts, const int* upto) : a_(a), experts_(experts), upto_(upto) {
    tiles_n_ = (a.N + T::kRows - 1) / T::kRows;
    tiles_m_ = a.over_places ? (a.M + T::BM - 1) / T::BM : upto[experts.E];
  }

  __device__ int count() const { return tiles_m_ * tiles_n_ * (a_.over_places ? experts_.E : 1); }

  __device__ Work at(int tile) const {
    const int of_expert = tiles_m_ * tiles_n_;
    int expert = 0;
    if (a_.over_places) expert = tile / of_expert, tile %= of_expert;
    const TilePlace place = place_together(tile, tiles_m_, tiles_n_);
    const int n = place.n * T::kRows;
    if (a_.over_places) {
      const int begin = expert_begin(experts_, expert), end = expert_begin(experts_, expert + 1);
      return {expert, place.m * T::BM, a_.M, n, n, begin, max(end - begin, 0)};
    }
    const Rows rows = rows_of_tile(experts_, T::BM, upto_, place.m);
    return {rows.expert, rows.first, rows.stop, n, rows.expert * a_.N + n, 0, rows.expert == experts_.E ? 0 : a_.K};
  }

 private:
  const ProductGrid& a_;
  const Experts& experts_;
  const int* upto_;
  int tiles_m_, tiles_n_;
};

// Asks for the scales of a tile, BM of rows of x and 64 of this warpgroup's rows of codes, to be copied to its place in shared memory. What has no products is
// zero, whatever its scales are.
template <class T>
__device__ inline void fetch_scales(const ProductGrid& a, const Work& work, int n0, int experts, uint32_t to) {
  const int thread = threadIdx.x % 128, bytes = work.size ? 4 : 0;
  const int64_t expert = work.expert < experts ? work.expert : 0;
  const float* const x = a.x_scale + (a.over_places ? expert * a.M : 0);
#pragma unroll
  for (int i = 0; i < T::BM; i += 128) copy_or_zero(to + 4 * (i + thread), x + min(work.m + i + thread, work.stop - 1), bytes);
  if (thread < 64) copy_or_zero(to + 4 * (T::BM + thread), a.scale + expert * a.N + min(n0 + thread, a.N - 1), bytes);
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
grouped_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map,
                const __grid_constant__ ProductGrid given, const __grid_constant__ Experts experts) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u, buffer = ring + T::kRing;
  const uint32_t full = ring + T::kFullAt, empty = full + 8 * STAGES;
  uint8_t* const aligned = memory + (ring - shared_address(memory));
  int* const upto = reinterpret_cast<int*>(aligned + T::kUptoAt);

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * T::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  wait_for_earlier_grids();  // everything comes from them
  if (threadIdx.x < 32 && !given.over_places) count_tiles(experts, T::BM, upto);
  __syncthreads();
  let_later_grids_start();
  const Tiles<T> tiles(given, experts, upto);
  const int n_tiles = tiles.count();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == T::CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::kProducerRegisters));
    if (threadIdx.x == 128 * T::CONSUMERS) {
      int stage = 0, phase = 0;
      for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        const Work work = tiles.at(tile);
        const bool half = work.half<T>();
        for (int k = 0; k < work.size; k += kStageK) {
          const uint32_t to = ring + stage * T::kStage;
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(full + 8 * stage, T::kStage - (half ? T::kX / 2 : 0));
          load_box(to, &codes_map, work.first + k, work.codes_row, full + 8 * stage);
          load_box(to + T::kCodes, &x_map, work.first + k, work.m, full + 8 * stage);
          if (T::BM > T::kBox && !half)
            load_box(to + T::kCodes + T::kBox * kStageK, &x_map, work.first + k, work.m + T::kBox, full + 8 * stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::kConsumerRegisters));
    const uint32_t scales_at = buffer + T::kEpilogue + 4 * warpgroup * T::kTileScales;
    const float* const scales = reinterpret_cast<const float*>(aligned + (scales_at - ring));
    int4* const place = reinterpret_cast<int4*>(aligned + (scales_at - ring) + 4 * (T::BM + 64));  // of the tile; not held in registers
    ProductArgs a{.x_scale = nullptr, .scale = nullptr, .bias = nullptr, .y = given.y, .M = 0, .N = given.N, .K = given.K,
                  .x_scale_stride = 1, .scale_stride = 1, .block_n = 1, .split = 1, .scale_dtype = DType::f32,
                  .bias_dtype = DType::f32, .y_dtype = given.y_dtype};
    Consumer<T> consumer(a, warpgroup);
    consumer.ring_ = ring;
    int stage = 0, phase = 0;
    const auto wait = [&] {
      barrier_wait(full + 8 * stage, phase);
      const int found = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
      return found;
    };
    const auto release = [&](int s) {
      if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * s);
    };
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      int size;
      bool half;
      {
        const Work work = tiles.at(tile);
        fetch_scales<T>(given, work, work.n + 64 * warpgroup, experts.E, scales_at);
        if (threadIdx.x % 128 == 0) *place = {work.m, work.stop, work.n, work.expert};
        size = __shfl_sync(~0u, work.size, 0);
        half = work.half<T>();
      }
      const int stages = size / kStageK, more = (size % kStageK + 31) / 32;
      if (half) consumer.template run<128>(0, 0, stages, wait, release, more);
      else consumer.run(0, 0, stages, wait, release, more);
      asm volatile("cp.async.wait_all;" ::: "memory");
      asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
      const int4 at = *place;
      a.M = at.y;
      if (given.over_places) a.y = static_cast<uint8_t*>(given.y) + int64_t{at.w} * given.M * given.N * (given.y_dtype == DType::f32 ? 4 : 2);
      const float of_codes[2] = {scales[T::BM + consumer.row(0) % 64], scales[T::BM + consumer.row(1) % 64]};
      // In the order of the reference: that of x first.
      consumer.template store_finished<T::kBuffers>(
          at.x, at.z, buffer, [&](float sum, int row, int part) { return sum * scales[row] * of_codes[part]; });
    }
  }
#endif
}

struct ProductLaunch {
  CUtensorMap x_map, codes_map;
  ProductGrid args;
  Experts experts;
  int rows;  // of x, of a tile: 128 or 256
  int64_t most_tiles;
  int multiprocessors;
  bool early;
  cudaStream_t stream;
};

template <class T>
cudaError_t launch_product_tile(const ProductLaunch& l) {
  constexpr auto kernel = grouped_product<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared + 4 * (kMostExperts + 1))) return error;
  const int64_t blocks = l.most_tiles < l.multiprocessors ? l.most_tiles : l.multiprocessors;
  Grid grid(static_cast<unsigned>(blocks), T::kThreads, T::kShared + 4 * (l.experts.E + 1), l.stream);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args, l.experts);
}

template <bool PROMOTES>
cudaError_t launch_products(const ProductLaunch& l) {
  return l.rows == 128 ? launch_product_tile<ProductTile<128, 6, PROMOTES>>(l) : launch_product_tile<ProductTile<256, 4, PROMOTES>>(l);
}

}  // namespace ao::bytes
