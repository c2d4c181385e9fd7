// A block of threads quantizes a token: each thread holds eights of it in registers.
#include "cuda/floats.cuh"
#include "cuda/fragments.cuh"
#include "cuda/grid.h"
#include "cuda/quantize_tokens.h"
#include "cuda/token_codes.cuh"

namespace ao {
namespace {

// Of a block whose threads hold so many eights.
constexpr int most_threads(int eights) { return eights == 1 ? 1024 : 512; }
static_assert(kMostColumns == 8 * 8 * most_threads(8));

// The largest peak of a block of threads.
__device__ inline uint32_t of_block(uint32_t peak, uint32_t* shared) {
  peak = __reduce_max_sync(~0u, peak);
  if (blockDim.x <= 32) return peak;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = peak;
  __syncthreads();
  return __reduce_max_sync(~0u, threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0);
}

template <class X, bool FLOAT8, TokenScales SCALES, int EIGHTS>
__global__ void __launch_bounds__(most_threads(EIGHTS)) quantize(const TokenArgs a) {
  __shared__ uint32_t shared[32];
  constexpr float kHighest = FLOAT8 ? 448.0f : 127.0f;
  const int64_t m = blockIdx.x;
  const int eights = static_cast<int>(a.K / 8);
  if (a.chained) let_later_grids_start();
  wait_for_earlier_grids();
  if (!a.chained) let_later_grids_start();
  const X* const row = static_cast<const X*>(a.x) + m * a.x_stride;
  float v[EIGHTS][8];
  uint32_t peak[EIGHTS], highest = 0;
#pragma unroll
  for (int i = 0; i < EIGHTS; ++i) {
    const int at = i * blockDim.x + threadIdx.x;
#pragma unroll
    for (int e = 0; e < 8; ++e) v[i][e] = 0;
    if (at < eights) load_eight(row + 8 * at, v[i]);
    peak[i] = peak_of(v[i]);
    highest = max(highest, peak[i]);
  }
  if constexpr (SCALES == TokenScales::tensor) {
    if (a.peaks) {
      for (int64_t other = threadIdx.x; other < a.M; other += blockDim.x) highest = max(highest, a.peaks[other]);
    } else {
      for (int64_t other = 0; other < a.M; ++other) {
        for (int at = threadIdx.x; at < eights; at += blockDim.x) {
          float w[8];
          load_eight(static_cast<const X*>(a.x) + other * a.x_stride + 8 * at, w);
          highest = max(highest, peak_of(w));
        }
      }
    }
  }
  float scale = 0;
  if constexpr (SCALES == TokenScales::given) {
    scale = *a.given;
    const bool finite = of_block(highest, shared) < kInfinity;
    if (threadIdx.x == 0) a.scale[m] = finite ? scale : __uint_as_float(0x7fc00000);
  } else if constexpr (SCALES != TokenScales::block) {
    scale = scale_of(of_block(highest, shared), kHighest);
    if (threadIdx.x == 0 && (SCALES == TokenScales::row || m == 0)) a.scale[m] = scale;
  }
#pragma unroll
  for (int i = 0; i < EIGHTS; ++i) {
    const int at = i * blockDim.x + threadIdx.x;
    if constexpr (SCALES == TokenScales::block) {  // sixteen neighbours have a block
      uint32_t of_sixteen = peak[i];
#pragma unroll
      for (int s = 1; s < 16; s *= 2) of_sixteen = max(of_sixteen, __shfl_xor_sync(~0u, of_sixteen, s));
      scale = scale_of(of_sixteen, kHighest);
      if (threadIdx.x % 16 == 0 && at < eights) a.scale[at / 16 * a.scale_stride + m] = scale;
    }
    if (at >= eights) continue;
    constexpr bool kGiven = SCALES == TokenScales::given;
    const uint2 codes = FLOAT8 ? float8_codes<kGiven>(v[i], scale, Divisor(scale))
                               : int8_codes<kGiven>(v[i], scale, __fdiv_rn(1.0f, scale));
    *reinterpret_cast<uint2*>(a.codes + m * a.K + 8 * at) = codes;
  }
}

template <class X>
__global__ void __launch_bounds__(512) find_peaks(const TokenArgs a) {
  __shared__ uint32_t shared[32];
  if (a.chained) let_later_grids_start();
  wait_for_earlier_grids();
  if (!a.chained) let_later_grids_start();
  const X* const row = static_cast<const X*>(a.x) + blockIdx.x * a.x_stride;
  uint32_t peak = 0;
  for (int at = threadIdx.x; at < a.K / 8; at += blockDim.x) {
    float v[8];
    load_eight(row + 8 * at, v);
    peak = max(peak, peak_of(v));
  }
  peak = of_block(peak, shared);
  if (threadIdx.x == 0) a.peaks[blockIdx.x] = peak;
}

template <class X, bool FLOAT8, TokenScales SCALES, int EIGHTS>
cudaError_t launch(const TokenArgs& a, bool early, cudaStream_t stream) {
  const int eights = static_cast<int>(a.K / 8), threads = (eights + EIGHTS - 1) / EIGHTS;
  Grid grid(static_cast<unsigned>(a.M), (threads + 31) / 32 * 32, 0, stream);
  if (early) grid.early();
  return grid.start(quantize<X, FLOAT8, SCALES, EIGHTS>, a);
}

// Few tokens take as many threads as there are, many have fewer of them wait for each other.
template <class X, bool FLOAT8, TokenScales SCALES>
cudaError_t launch(const TokenArgs& a, bool early, cudaStream_t stream) {
  const bool many = a.M > 256;
  if (a.K <= 8 * most_threads(1) && !many) return launch<X, FLOAT8, SCALES, 1>(a, early, stream);
  if (a.K <= 8 * 4 * most_threads(4)) return launch<X, FLOAT8, SCALES, 4>(a, early, stream);
  return launch<X, FLOAT8, SCALES, 8>(a, early, stream);
}

template <class X>
cudaError_t launch(const TokenArgs& a, bool early, cudaStream_t stream) {
  switch (a.scales) {
    case TokenScales::given:
      return a.float8 ? launch<X, true, TokenScales::given>(a, early, stream)
                      : launch<X, false, TokenScales::given>(a, early, stream);
    case TokenScales::tensor: {
      if (!a.peaks) return launch<X, true, TokenScales::tensor>(a, early, stream);
      Grid grid(static_cast<unsigned>(a.M), static_cast<int>(a.K >= 4096 ? 512 : (a.K / 8 + 31) / 32 * 32), 0, stream);
      if (early) grid.early();
      if (const cudaError_t error = grid.start(find_peaks<X>, a)) return error;
      TokenArgs second = a;
      second.chained = true;  // to that grid
      return launch<X, true, TokenScales::tensor>(second, early, stream);
    }
    case TokenScales::block: return launch<X, true, TokenScales::block>(a, early, stream);
    default:
      return a.float8 ? launch<X, true, TokenScales::row>(a, early, stream)
                      : launch<X, false, TokenScales::row>(a, early, stream);
  }
}

}  // namespace

cudaError_t quantize_tokens(const TokenArgs& a, bool early, cudaStream_t stream) {
  switch (a.x_dtype) {
    case DType::bf16: return launch<__nv_bfloat16>(a, early, stream);
    case DType::f16: return launch<__half>(a, early, stream);
    default: return launch<float>(a, early, stream);
  }
}

}  // namespace ao
