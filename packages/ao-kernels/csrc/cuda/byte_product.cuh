// Linear of 8-bit activations and 8-bit weights on Hopper:
//
//   y[m, n] = scale[n] * x_scale[m] * sum_k x[m, k] * code[n, k] + bias[n]
//   y[m, n] = sum_g scale[n / block_n, g] * x_scale[m, g] * sum_{k in g} x[m, k] * code[n, k] + bias[n]    groups of 128
//
// A CTA makes a tile of 64 or 128 output features by BM tokens. A producer warp has the copy engine fill a ring of stages, each 128 input
// features of weights and tokens; a warpgroup for each 64 output features multiplies them from shared memory, where weights are the 64-wide side of wgmma
// and tokens the narrow one, so that one token costs little more than the bytes of the weights. `split` CTAs of a cluster share a tile, each
// with its part of K, and add up through distributed shared memory in the order of their ranks: bits repeat.
//
// int8: sums are int32, exact. float8: the matrix units keep about 14 bits of a sum; it is added to a float32 one every 128
// input features, unless the tile says otherwise.
//
// Early launch: the grid in front quantizes the tokens, started by the same call; chain.h says why nobody can be writing weights
// any more when this one starts. They are fetched at once, up to a ring of them; tokens and their scales come after
// wait_for_earlier_grids().
#pragma once
#include <cuda.h>

#include "cuda/byte_consumer.cuh"
#include "cuda/fragments.cuh"

namespace ao::bytes {

using namespace ao::large;

constexpr int kGroupTiles = 8;   // tiles of tokens that are worked off together, so that tokens and weights stay in L2

struct Place {
  int m, n;
};

template <class T>
__device__ inline Place place_of(int tile, int tiles_m, int tiles_n) {
  const int of_group = kGroupTiles * tiles_n, first = tile / of_group * kGroupTiles, within = tile % of_group;
  const int width = min(kGroupTiles, tiles_m - first);
  return {(first + within % width) * T::BM, within / width * T::kRows};
}

__device__ inline void store_value(void* y, DType dtype, int64_t at, float v) {
  switch (dtype) {
    case DType::bf16: static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16(v); break;
    case DType::f16: static_cast<__half*>(y)[at] = __float2half(v); break;
    default: static_cast<float*>(y)[at] = v;
  }
}

// The sums of a tile, each CTA of the cluster a share of them.
template <class T>
__device__ void add_parts(const ProductArgs& a, uint32_t parts, int rank, Place at) {
  constexpr int kFours = T::kRows / 4, kAdders = 128 * T::CONSUMERS;
  for (int i = rank * kAdders + threadIdx.x; i < T::BM * kFours; i += a.split * kAdders) {
    const int m = at.m + i / kFours, n = at.n + i % kFours * 4;
    if (m >= a.M || n >= a.N) continue;
    const uint32_t from = parts + 4 * (i / kFours * T::kPitch + i % kFours * 4);
    typename T::Sum sum[4] = {};
    for (int r = 0; r < a.split; ++r) {
      const float4 part = load_remote(from, r);
      if constexpr (std::is_same_v<typename T::Sum, float>) {
        sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
      } else {
        sum[0] += __float_as_int(part.x), sum[1] += __float_as_int(part.y);
        sum[2] += __float_as_int(part.z), sum[3] += __float_as_int(part.w);
      }
    }
    const float x_scale = token_scale<T>(a, m);
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = Feature<T>(a, n + e).finished(sum[e], x_scale);
    const int64_t y = int64_t{m} * a.N + n;
    if (a.N % 4 == 0 && a.y_dtype != DType::f32) {
      const uint2 both{pack_two(a.y_dtype, v[0], v[1]), pack_two(a.y_dtype, v[2], v[3])};
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.y) + y) = both;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (n + e < a.N) store_value(a.y, a.y_dtype, y + e, v[e]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::CTAS)
byte_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map, const ProductArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u, buffer = ring + T::kRing;
  const uint32_t scales = buffer + T::kEpilogue, full = scales + STAGES * T::kScales, empty = full + 8 * STAGES;
  const int tiles_m = (a.M + T::BM - 1) / T::BM, tiles_n = (a.N + T::kRows - 1) / T::kRows, n_tiles = tiles_m * tiles_n;
  const int n_blocks = (a.K + kStageK - 1) / kStageK, per_split = (n_blocks + a.split - 1) / a.split;
  const int rank = blockIdx.x % a.split, first_tile = blockIdx.x / a.split, tile_step = gridDim.x / a.split;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * T::CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == T::CONSUMERS) {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::kProducerRegisters));
    if (threadIdx.x == 128 * T::CONSUMERS) {
      int stage = 0, phase = 0, pending = 0;
      const auto load_codes = [&](Place at, int block) {
        barrier_wait(empty + 8 * stage, phase ^ 1);
        barrier_expect(full + 8 * stage, T::kStage + T::kScales);
        load_box(ring + stage * T::kStage, &codes_map, block * kStageK, at.n, full + 8 * stage);
      };
      const auto load_tokens = [&](Place at, int block, int s) {
        load_box(ring + s * T::kStage + T::kCodes, &x_map, block * kStageK, at.m, full + 8 * s);
        if constexpr (T::BLOCKS)
          load_bulk(scales + s * T::kScales, a.x_scale + int64_t{block} * a.x_scale_stride + at.m, T::kScales, full + 8 * s);
      };
      const Place begin = place_of<T>(first_tile, tiles_m, tiles_n);
      for (; pending < STAGES && first + pending < last; ++pending) {
        load_codes(begin, first + pending);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      wait_for_earlier_grids();
      let_later_grids_start();
      for (int i = 0; i < pending; ++i) load_tokens(begin, first + i, i);
      for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
        const Place at = place_of<T>(tile, tiles_m, tiles_n);
        for (int block = tile == first_tile ? first + pending : first; block < last; ++block) {
          load_codes(at, block);
          load_tokens(at, block, stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
    if (a.split > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::kConsumerRegisters));
    wait_for_earlier_grids();
    Consumer<T> consumer(a, warpgroup);
    consumer.ring_ = ring, consumer.scales_ = scales;
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
    Place at{};
    for (int tile = first_tile; tile < n_tiles; tile += tile_step) {
      at = place_of<T>(tile, tiles_m, tiles_n);
      consumer.run(at.n, first, last, wait, release);
      if (a.split == 1) consumer.store(at.m, at.n, buffer);
    }
    if constexpr (T::kSplits) {
      if (a.split > 1) {
        asm volatile("bar.sync 3, %0;" ::"n"(128 * T::CONSUMERS) : "memory");  // the other warpgroup has read its last stage
        consumer.store_part(ring);
        cluster_sync();
        add_parts<T>(a, ring, rank, at);
        cluster_sync();  // the others may still read this CTA's memory
      }
    }
  }
#endif
}

}  // namespace ao::bytes
