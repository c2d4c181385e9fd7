// Weight-only linear for a few tokens: reads the weights once, at the speed of memory.
//
//   y[m, n] = sum_g scale[n, g] * (sum_{k in g} (code[n, k] - middle) x[m, k]
//                                  - (zero[n, g] - middle) sum_{k in g} x[m, k]) + bias[n]
//
// A warp multiplies a tile of 16 or 32 rows of weights (one or two fragments: A of the matrix instruction, dequantized in
// registers) by 8 or 16 tokens (B, which two fragments share). It walks over a range of K in steps of 128 codes a row.
// A block has `tiles` x `splits` warps: up to `tiles` tiles, and its part of K cut into `splits`. Up to 8 blocks of a cluster share K once more; the parts are added in a
// fixed order, first in shared memory, then across the cluster.
//
// A step has 16 units of 8 codes a row. The four lanes t that hold a row take four units each, j = 0..3:
//   wide    unit 4t + j: 4b bytes that follow each other, in as wide loads as they allow (bytes: 8(j/2) + 2t + j%2).
//           Every matrix instruction mixes codes of all lanes, so a step must lie in one group.
//   narrow  unit 4j + t: the units of one j are 32 codes that follow each other, so groups of 32 suffice.
// In shared memory the tokens stand in the order in which lanes read them: 16 bytes for unit (t, j) at 4j + t of the
// step, the eight values as Codes::order has them. Rows of tokens are 64 bytes off a multiple of 128, so that the
// eight lanes that read together hit 32 different banks.
//
// Programmatic dependent launch: a grid may start while the ones before it in the stream still run. A chained grid (chain.h)
// fetches codes and parameters at once: all grids that could write weights have ended. Another one only asks for them to be brought into L2, which
// is where all multiprocessors meet: a later write of an earlier grid changes what lies there, so that nothing stale can be
// seen. Tokens are read, and results stored, after wait_for_earlier_grids(); no load is .nc, which would promise that nobody
// writes while this grid runs. Every thread waits, so that this grid ends after all before it, and only then lets the next one start.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/codes.cuh"
#include "cuda/fragments.cuh"
#include "cuda/raw_codes.cuh"
#include "cuda/weight_only_small.h"
#include "types.h"

namespace ao::small {

constexpr int kStep = 128;       // codes of a row in a step
constexpr int kStepUnits = kStep / 8;

struct Arguments {
  const uint8_t* codes;
  const uint16_t* x;
  uint16_t* y;
  const void* scale;
  const void* zero;
  const void* bias;
  int64_t x_stride, row_bytes;
  uint32_t scale_stride;
  int block_n;              // rows that share a row of scales; float8
  int M, N, K;
  int steps;                // ceil(K / 128)
  uint32_t group_inverse;   // span / (spans of a group) = umulhi(span, this); 0: one group
  bool chained;             // to the grid in front: see above
  bool every_span;          // a group is one span; group_inverse has no room for that
  uint32_t scale_bytes;     // 2 or 4
  DType bias_dtype;
  int tiles, splits, cluster;
  int block_tiles, longer_blocks;  // tiles of a block, at most `tiles`; the first blocks have one more
  int tiles_inverse;        // warp / tiles = warp * this / 4096
  int slice;                // steps of a block; the last ones of a cluster may have fewer
  int split_steps, longer_splits;  // steps of a split; the first ones have one more
  int x_row;                // 16-byte pieces from one token to the next in shared memory
};

__device__ __forceinline__ int group_of(const Arguments& a, int span) {
  return a.every_span ? span : __umulhi(span, a.group_inverse);
}

// The bits of a scale or zero at a byte. They become a float where it is used: a shift here would wait for the load.
__device__ __forceinline__ uint32_t load_parameter(const void* data, uint32_t byte, uint32_t bytes) {
  const char* const p = static_cast<const char*>(data) + byte;
  return bytes == 4 ? load_shared_sector(reinterpret_cast<const uint32_t*>(p))
                    : load_shared_sector(reinterpret_cast<const uint16_t*>(p));
}

__device__ __forceinline__ float parameter_value(uint32_t bits, uint32_t bytes) {
  return __uint_as_float(bytes == 4 ? bits : bits << 16);
}

__device__ __forceinline__ float load_float(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    case DType::f16: return __half2float(static_cast<const __half*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

// Where shared memory keeps unit u (0..15) of a step.
template <int BITS, bool WIDE>
__device__ __forceinline__ int place_of_unit(int u) {
  if constexpr (!WIDE) {
    return u;
  } else if constexpr (Codes<BITS>::kUnitBytes == 8) {
    return 4 * (u / 8 * 2 + u % 2) + u / 2 % 4;
  } else {
    return 4 * (u % 4) + u / 4;
  }
}

// Eight values in the order of Codes::order.
template <int BITS>
__device__ __forceinline__ uint4 in_order(uint4 v) {
  if constexpr (BITS < 0) return v;
  if constexpr (Codes<BITS>::kUnitBytes == 8)
    return {__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632),
            __byte_perm(v.z, v.w, 0x5410), __byte_perm(v.z, v.w, 0x7632)};
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
          __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
}

template <class Half>
__device__ __forceinline__ float sum_of_pair(uint32_t pair) {
  if constexpr (is_bf16<Half>)
    return __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
  const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  return v.x + v.y;
}

// Tokens of steps [first, last) to shared memory; behind K there are zeros.
template <int BITS, bool WIDE>
__device__ void stage_tokens(const Arguments& a, uint4* x_shared, int first, int last) {
  const int pieces = (last - first) * kStepUnits, valid = a.K / 8 - first * kStepUnits;
  if (pieces == 0) return;
  const uint16_t* source = a.x + first * kStep;
  int m = 0, piece = threadIdx.x;
  constexpr int kBatch = 4;
  while (true) {
    uint4 v[kBatch];
    int place[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      while (piece >= pieces) piece -= pieces, ++m;
      place[i] = -1;
      v[i] = {0, 0, 0, 0};
      if (m < a.M) {
        place[i] = m * a.x_row + piece / kStepUnits * kStepUnits + place_of_unit<BITS, WIDE>(piece % kStepUnits);
        if (piece < valid) v[i] = *reinterpret_cast<const uint4*>(source + m * a.x_stride + 8 * piece);
      }
      piece += blockDim.x;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (place[i] >= 0) x_shared[place[i]] = in_order<BITS>(v[i]);
    if (m >= a.M) return;
  }
}

// Sums of the tokens over each span (a step if WIDE, else 32 codes), (spans, COLUMNS) floats.
template <class Half, bool WIDE, int COLUMNS>
__device__ void sum_tokens(const Arguments& a, const uint4* x_shared, float* sums, int steps) {
  const int units = steps * 4;  // of 32 codes: four pieces that follow each other in either order, or 1/4 of a step
  const int total = (a.M * units + 31) / 32 * 32;  // whole warps, for the shuffles
  for (int i = threadIdx.x; i < total; i += blockDim.x) {
    const int m = i / units, unit = i % units;
    float sum = 0;
    if (m < a.M) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const uint4 v = x_shared[m * a.x_row + 4 * unit + p];
        sum += (sum_of_pair<Half>(v.x) + sum_of_pair<Half>(v.y)) +
               (sum_of_pair<Half>(v.z) + sum_of_pair<Half>(v.w));
      }
    }
    if constexpr (WIDE) {
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (m < a.M && unit % 4 == 0) sums[unit / 4 * COLUMNS + m] = sum;
    } else {
      if (m < a.M) sums[unit * COLUMNS + m] = sum;
    }
  }
}

// d[f][nt] += the units J of rows g and g + 8 of fragment f, times the tokens 8nt .. 8nt + 7.
template <int BITS, class Half, int NT, int J, int ROWS, class RawCodes>
__device__ __forceinline__ void multiply_units(const RawCodes (&raw)[ROWS], int t,
                                               const uint4* const (&tokens)[NT], int step,
                                               float (&d)[ROWS / 2][NT][4]) {
  using C = Codes<BITS>;
  uint4 b[NT];
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) b[nt] = tokens[nt][step * kStepUnits + 4 * J];
#pragma unroll
  for (int f = 0; f < ROWS / 2; ++f) {
    uint32_t a[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t unit[C::kUnitWords];
      raw[2 * f + r].template unit<J>(t, unit);
      C::template unpack<Half>(unit, a[r]);
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      multiply_add<Half>(d[f][nt], a[0][0], a[1][0], a[0][1], a[1][1], b[nt].x, b[nt].y);
      multiply_add<Half>(d[f][nt], a[0][2], a[1][2], a[0][3], a[1][3], b[nt].z, b[nt].w);
    }
  }
}

// sum += scale * (part - (zero - middle) * the sum of the tokens); rows g (0) and g + 8 (1).
template <int NT, bool ZERO>
__device__ __forceinline__ void add_scaled(float (&sum)[NT][4], const float (&part)[NT][4],
                                           const uint32_t* scale_bits, const uint32_t* zero_bits, uint32_t bytes,
                                           float middle, const float* token_sums) {
  const float scale[2] = {parameter_value(scale_bits[0], bytes), parameter_value(scale_bits[1], bytes)};
  float shift[2] = {0, 0};
  if constexpr (ZERO) {
    shift[0] = parameter_value(zero_bits[0], bytes) - middle;
    shift[1] = parameter_value(zero_bits[1], bytes) - middle;
  }
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) {
    float2 tokens = {0, 0};
    if constexpr (ZERO) tokens = *reinterpret_cast<const float2*>(token_sums + 8 * nt);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float v = part[nt][i];
      if constexpr (ZERO) v -= shift[i / 2] * (i % 2 ? tokens.y : tokens.x);
      sum[nt][i] += scale[i / 2] * v;
    }
  }
}

// Adds up what the warps and the blocks of the cluster have, and stores it.
template <class Half, int TILE_ROWS, int WARP_FLOATS>
__device__ void store(const Arguments& a, const float* sums, float* parts, int tile_0, int tiles, int rank) {
  const int rows = tiles * TILE_ROWS, total = rows * a.M, n_first = tile_0 * TILE_ROWS;
  auto of_block = [&](int i) {
    const int m = i / rows, r = i % rows;
    const float* place = sums + r / TILE_ROWS * WARP_FLOATS + m * sum_stride(TILE_ROWS / 16) + r % TILE_ROWS;
    float v = 0;
    for (int s = 0; s < a.splits; ++s) v += place[s * a.tiles * WARP_FLOATS];
    return v;
  };
  auto put = [&](int i, float v) {
    const int m = i / rows, n = n_first + i % rows;
    if (n >= a.N) return;
    if (a.bias) v += load_float(a.bias, a.bias_dtype, n);
    Half* const y = reinterpret_cast<Half*>(a.y) + static_cast<int64_t>(m) * a.N + n;
    if constexpr (is_bf16<Half>) *y = __float2bfloat16_rn(v);
    else *y = __float2half_rn(v);
  };
  if (a.cluster == 1) {
    for (int i = threadIdx.x; i < total; i += blockDim.x) put(i, of_block(i));
    return;
  }
  for (int i = threadIdx.x; i < total; i += blockDim.x) parts[i] = of_block(i);
  synchronize_cluster();
  const int begin = total * rank / a.cluster, end = total * (rank + 1) / a.cluster;
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    float v = 0;
    for (int r = 0; r < a.cluster; ++r) v += read_of_cluster(parts + i, r);
    put(i, v);
  }
  synchronize_cluster();  // no block ends while others read its shared memory
}

// What a block does. SLOTS: of steps in shared memory, all but one of them under way.
template <int BITS, class Half, int NT, int FRAGMENTS, bool WIDE, bool ZERO, int SLOTS>
__device__ __forceinline__ void multiply_block(const Arguments& a) {
  using C = Codes<BITS>;
  constexpr int kRows = 2 * FRAGMENTS;  // of a lane
  constexpr int kColumns = 8 * NT, kStepBytes = kStep / 8 * C::kUnitBytes;
  extern __shared__ uint4 x_shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // Without divisions: they would take as long as the first codes take to come.
  const int split = warp * a.tiles_inverse >> 12, tile = warp - split * a.tiles;
  const int block = blockIdx.x, rank = blockIdx.y;
  const int tile_0 = block * a.block_tiles + min(block, a.longer_blocks), tiles = a.block_tiles + (block < a.longer_blocks);
  const int first = min(rank * a.slice, a.steps), last = min(first + a.slice, a.steps);
  const int begin = min(first + split * a.split_steps + min(split, a.longer_splits), last);
  const int end = tile < tiles ? min(begin + a.split_steps + (split < a.longer_splits), last) : begin;

  // Rows behind N repeat the last one and are not stored.
  using R = Raw<BITS, WIDE>;
  const int tile_first = (tile_0 + tile) * 8 * kRows;
  const auto row_of = [&](int in_tile) { return min(tile_first + in_tile, a.N - 1); };
  const int row_0 = row_of(R::copy_row(lane, 0));
  const uint8_t* codes = a.codes + row_0 * a.row_bytes + begin * kStepBytes;  // in the step that is fetched next
  uint32_t behind[kRows][R::kCopyRows];  // bytes from there to each row that this lane copies
  uint32_t parameters[kRows];            // byte of the first scale of a row that it multiplies
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < R::kCopyRows; ++i)
      behind[r][i] = static_cast<uint32_t>(row_of(8 * r + R::copy_row(lane, i)) - row_0) * static_cast<uint32_t>(a.row_bytes);
    int scales = row_of(8 * r + g);
    if (BITS < 0 && a.block_n > 1) scales /= a.block_n;
    parameters[r] = scales * a.scale_stride * a.scale_bytes;
  }
  // What the warp reads first: 256 bytes of a row or all that fits into shared memory.
  constexpr int kFirstSteps = SLOTS - 1 > 256 / kStepBytes ? SLOTS - 1 : 256 / kStepBytes;
  if (!a.chained && begin < end) {
    const int bytes = min(kStepBytes * min(kFirstSteps, end - begin), static_cast<int>(a.row_bytes) - kStepBytes * begin);
    const uint32_t group_byte = group_of(a, (WIDE ? 1 : 4) * begin) * a.scale_bytes;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < R::kCopyRows; ++i) prefetch_row<4 * R::kCopyRows>(codes + behind[r][i], lane, bytes);
      prefetch_sector(static_cast<const char*>(a.scale) + parameters[r] + group_byte);
      if constexpr (ZERO) prefetch_sector(static_cast<const char*>(a.zero) + parameters[r] + group_byte);
    }
  }
  if (!a.chained) wait_for_earlier_grids();

  constexpr int kRowBytes = step_bytes(C::kUnitBytes, WIDE) / 2;
  constexpr int kWarpBytes = warp_bytes(C::kUnitBytes, WIDE, FRAGMENTS, kColumns, SLOTS);
  uint8_t* const shared = reinterpret_cast<uint8_t*>(x_shared + a.M * a.x_row);
  uint8_t* const ring = shared + warp * kWarpBytes;
  auto fetch = [&](int step, int slot) {
    if (step < end) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        R::copy(ring + (kRows * slot + r) * kRowBytes, codes, behind[r], lane, a.K - step * kStep);
      codes += kStepBytes;
    }
    commit_copies();  // a group a step, so that their number tells what has come
  };
  for (int i = 0; i < SLOTS - 1; ++i) fetch(begin + i, i);

  // Scales and zeros of four spans that follow each other, one a lane of the row's four: those of four steps or, if narrow,
  // of one. Each is loaded once, and the multiplication of a step lies between the loads and the first use.
  constexpr int kSpans = WIDE ? 1 : 4;  // of a step
  uint32_t scale[kRows], zero[kRows];
  auto fetch_parameters = [&](int step) {
    const int span = kSpans * step + t;
    if (span >= kSpans * end || (!WIDE && 32 * span >= a.K)) return;
    const uint32_t group_byte = group_of(a, span) * a.scale_bytes;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scale[r] = load_parameter(a.scale, parameters[r] + group_byte, a.scale_bytes);
      if constexpr (ZERO) zero[r] = load_parameter(a.zero, parameters[r] + group_byte, a.scale_bytes);
    }
  };
#pragma unroll
  for (int r = 0; r < kRows; ++r) scale[r] = zero[r] = 0;
  fetch_parameters(begin);

  if (a.chained) wait_for_earlier_grids();
  let_later_grids_start();
  stage_tokens<BITS, WIDE>(a, x_shared, first, last);
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(shared + blockDim.x / 32 * kWarpBytes);  // of the block, for the cluster
  float* const token_sums = parts + (a.cluster > 1 ? a.tiles * 8 * kRows * kColumns : 0);
  if constexpr (ZERO) {
    sum_tokens<Half, WIDE, kColumns>(a, x_shared, token_sums, last - first);
    __syncthreads();
  }

  const uint4* tokens[NT];  // columns behind M repeat the last token and are not stored
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) tokens[nt] = x_shared + min(8 * nt + g, a.M - 1) * a.x_row + t;

  float sum[FRAGMENTS][NT][4] = {};
  // sum += what a span of the step multiplied to; `owner` of the row's four lanes has its parameters.
  auto add_span = [&](const float (&part)[FRAGMENTS][NT][4], int owner, const float* x_sums) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      uint32_t scale_bits[2], zero_bits[2] = {0, 0};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale_bits[r] = __shfl_sync(~0u, scale[2 * f + r], owner, 4);
        if constexpr (ZERO) zero_bits[r] = __shfl_sync(~0u, zero[2 * f + r], owner, 4);
      }
      add_scaled<NT, ZERO>(sum[f], part[f], scale_bits, zero_bits, a.scale_bytes, C::kMiddle, x_sums);
    }
  };
  int slot = 0;
  for (int step = begin; step < end; ++step) {
    wait_for_copies<SLOTS - 2>();
    if constexpr (R::kCopyRows > 1) __syncwarp();  // for others' copies, and until others have read what is copied over
    R raw[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) raw[r].read(ring + (kRows * slot + r) * kRowBytes, lane);
    fetch(step + SLOTS - 1, slot ? slot - 1 : SLOTS - 1);  // the slot that the last step has used up
    slot = slot + 1 < SLOTS ? slot + 1 : 0;
    const float* const x_sums = token_sums + kSpans * (step - first) * kColumns + 2 * t;
    if constexpr (WIDE) {
      // Several chains of instructions that wait for each other: two fragments of 16 tokens have four.
      constexpr int kChains = FRAGMENTS == 1 ? 2 : 1;
      float part[kChains][FRAGMENTS][NT][4] = {};
      multiply_units<BITS, Half, NT, 0>(raw, t, tokens, step - first, part[0]);
      multiply_units<BITS, Half, NT, 1>(raw, t, tokens, step - first, part[kChains - 1]);
      multiply_units<BITS, Half, NT, 2>(raw, t, tokens, step - first, part[0]);
      multiply_units<BITS, Half, NT, 3>(raw, t, tokens, step - first, part[kChains - 1]);
      if constexpr (kChains == 2) {
#pragma unroll
        for (int nt = 0; nt < NT; ++nt)
#pragma unroll
          for (int i = 0; i < 4; ++i) part[0][0][nt][i] += part[1][0][nt][i];
      }
      const int owner = (step - begin) % 4;
      add_span(part[0], owner, x_sums);
      if (owner == 3) fetch_parameters(step + 1);
    } else {
      auto span = [&]<int J>(std::integral_constant<int, J>) {
        if (step * kStep + 32 * J >= a.K) return;
        float part[FRAGMENTS][NT][4] = {};
        multiply_units<BITS, Half, NT, J>(raw, t, tokens, step - first, part);
        add_span(part, J, x_sums + J * kColumns);
      };
      span(std::integral_constant<int, 0>{});
      span(std::integral_constant<int, 1>{});
      span(std::integral_constant<int, 2>{});
      span(std::integral_constant<int, 3>{});
      fetch_parameters(step + 1);
    }
  }

  // (column, row) of the warp, over its codes
  float* const mine = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
    for (int nt = 0; nt < NT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * nt + 2 * t + i % 2) * sum_stride(FRAGMENTS) + 16 * f + g + i / 2 * 8] = sum[f][nt][i];
  __syncthreads();
  store<Half, 8 * kRows, kWarpBytes / 4>(a, reinterpret_cast<const float*>(shared), parts, tile_0, tiles, rank);
}

// THREADS: the most a block may have, which leaves each 65536 / THREADS registers.
template <int BITS, class Half, int NT, int FRAGMENTS, bool WIDE, bool ZERO, int SLOTS, int THREADS>
__global__ void __launch_bounds__(THREADS, 1) weight_only(const __grid_constant__ Arguments a) {
  multiply_block<BITS, Half, NT, FRAGMENTS, WIDE, ZERO, SLOTS>(a);
}

}  // namespace ao::small
