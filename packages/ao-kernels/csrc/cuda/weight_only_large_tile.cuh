// What the parts of weight_only_large.cuh share: arguments, the sizes of a tile, and a thread's place in it.
#pragma once
#include <cuda_bf16.h>

#include "cuda/tile_store.cuh"
#include "linear.h"

namespace ao::large {

constexpr int kStageK = 128;            // input features a stage
// Bytes of a row of codes a stage.
__host__ __device__ constexpr int stage_code_bytes(int codes) { return codes == 4 ? kStageK / 2 : kStageK; }

struct LargeArgs {
  const void* scale;   // (N or 1, G) bf16, or float32 when it spans the row; of float8 codes float32, one row for block_n rows
  const void* zero;    // like scale, or nullptr
  const void* bias;    // (N) or nullptr
  __nv_bfloat16* y;    // (M, N)
  int M, N, K, G;
  int scale_stride;    // G, or 0 where all rows share the scales
  int group_size, block_n;
  int split;           // CTAs that share a tile
  DType scale_dtype, bias_dtype;
  bool chained;        // to the grid in front: codes are fetched at once (chain.h)
  int first_n = 0;     // the grid makes output features from here to end_n, which is N or a multiple of its tile beyond first_n;
  int end_n = 0;       // only weight_only_large looks at these two
};

// CODES: 4, kInt8, kE4m3 or kE5m2. CONSUMERS: warpgroups of 64 output features. BM: tokens. CTAS: of a multiprocessor. NS: groups in
// 128 input features (1, 2, 4; codes of a byte: 4 stands for 2 too), or 0 where a group spans the row.
template <int CODES_, int CONSUMERS_, int BM_, int STAGES_, int CTAS_, int NS_>
struct LargeTile {
  static constexpr int CODES = CODES_, CONSUMERS = CONSUMERS_, BM = BM_, STAGES = STAGES_, CTAS = CTAS_, NS = NS_;
  // A warpgroup of a CTA that has a multiprocessor for itself only fills the ring; it hands registers to the others, 168 each at launch.
  // Smaller CTAs need them all, and a thread of theirs fills the ring.
  static constexpr bool kProducer = CONSUMERS == 2 && CTAS == 1;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kConsumerThreads = 128 * CONSUMERS, kThreads = kConsumerThreads + 128 * kProducer;
  static constexpr int BN = 64 * CONSUMERS;
  static constexpr int kCodes = BN * stage_code_bytes(CODES);
  static constexpr int kHalfX = BM * 128;           // 64 input features of all tokens
  static constexpr int kStage = kCodes + 2 * kHalfX;
  static constexpr int kEpilogue = store_bytes(CONSUMERS, BM);
  static constexpr int kPitch = BN + 4;             // floats; 2 * kPitch % 32 == 8: no bank conflicts
  static constexpr int kRing = STAGES * kStage;
  static constexpr bool kSplits = BM * kPitch * 4 <= kRing + kEpilogue;  // the sums of a part fit where the stages were
  static constexpr int kShared = 1024 + kRing + kEpilogue + 16 * STAGES;
  static_assert(kCodes % 1024 == 0 && kHalfX % 1024 == 0);
};

__device__ inline uint32_t bits_of(__nv_bfloat162 v) { return *reinterpret_cast<uint32_t*>(&v); }
__device__ inline __nv_bfloat162 pair_of(uint32_t bits) { return *reinterpret_cast<__nv_bfloat162*>(&bits); }

// A thread of a consumer: lane 4 g + t of a warp.
struct LargeThread {
  const LargeArgs& args;
  int lane, warp, warpgroup, t, g;

  __device__ LargeThread(const LargeArgs& a, int of_warpgroup)
      : args(a), lane(threadIdx.x % 32), warp(threadIdx.x / 32 % 4), warpgroup(of_warpgroup), t(lane % 4), g(lane / 4) {}

  // Row of the tile that it holds: g of its warp's sixteen, or g + 8.
  __device__ int row(int part) const { return warpgroup * 64 + warp * 16 + g + 8 * part; }
};

}  // namespace ao::large
