// w = (code - zero) * scale. A thread takes eight codes of a row, which are `bits` whole bytes and lie in one group.
#include "cuda/dequantize.h"
#include "cuda/floats.cuh"

namespace ao {
namespace {

__device__ inline void store(float* to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16* to, float v) { *to = __float2bfloat16(v); }
__device__ inline void store(__half* to, float v) { *to = __float2half(v); }

// Eight codes; BITS 0: int8. aligned: p is a multiple of their bytes.
template <int BITS>
__device__ inline void load_codes(const uint8_t* p, bool aligned, float (&codes)[8]) {
  constexpr int kBytes = BITS ? BITS : 8;
  uint64_t word = 0;
  if (kBytes == 4 && aligned) {
    word = *reinterpret_cast<const uint32_t*>(p);
  } else if (kBytes == 8 && aligned) {
    word = *reinterpret_cast<const uint64_t*>(p);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes; ++i) word |= uint64_t{p[i]} << 8 * i;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (BITS == 0) codes[i] = static_cast<int8_t>(word >> 8 * i);
    else codes[i] = static_cast<float>(word >> BITS * i & ((1u << BITS) - 1));
  }
}

// Blocks stand over the eights of a row (x) and over rows (y).
template <int BITS, class Out>
__global__ void dequantize_eights(const LinearArgs a) {
  const int64_t k = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
  if (k >= a.K) return;
  constexpr int kBytes = BITS ? BITS : 8;
  const bool aligned = a.row_bytes % kBytes == 0 && reinterpret_cast<uintptr_t>(a.codes) % kBytes == 0;
  const int left = a.K - k < 8 ? static_cast<int>(a.K - k) : 8;
  const int64_t group = k / a.group_size;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const int64_t parameter = n * a.scale_stride + group;
    const float scale = load_float(a.scale, a.scale_dtype, parameter);
    float zero = BITS ? static_cast<float>(1 << (BITS ? BITS - 1 : 0)) : 0.0f;
    if (a.zero) zero = load_float(a.zero, a.scale_dtype, parameter);
    const uint8_t* const of_row = a.codes + n * a.row_bytes + k / 8 * kBytes;
    alignas(16) Out out[8];
    if (BITS || left == 8) {
      float codes[8];
      load_codes<BITS>(of_row, aligned, codes);
#pragma unroll
      for (int i = 0; i < 8; ++i) store(out + i, (codes[i] - zero) * scale);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < left) store(out + i, static_cast<float>(static_cast<int8_t>(of_row[i])) * scale);
    }
    Out* const to = static_cast<Out*>(a.y) + n * a.K + k;
    if (a.K % 8 == 0) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(out) / 16); ++i)
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(out)[i];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < left) to[i] = out[i];
    }
  }
}

template <int BITS>
cudaError_t launch(const LinearArgs& a, int multiprocessors, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const auto columns = static_cast<unsigned>((a.K + 8 * kThreads - 1) / (8 * kThreads));
  const int64_t most = (int64_t{multiprocessors} * 32 + columns - 1) / columns;  // rows at a time
  const dim3 grid(columns, static_cast<unsigned>(a.N < most ? a.N : most < 65535 ? most : 65535));
  switch (a.x_dtype) {
    case DType::bf16: dequantize_eights<BITS, __nv_bfloat16><<<grid, kThreads, 0, stream>>>(a); break;
    case DType::f16: dequantize_eights<BITS, __half><<<grid, kThreads, 0, stream>>>(a); break;
    default: dequantize_eights<BITS, float><<<grid, kThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t dequantize(const LinearArgs& a, int multiprocessors, cudaStream_t stream) {
  switch (a.bits) {
    case 0: return launch<0>(a, multiprocessors, stream);
    case 1: return launch<1>(a, multiprocessors, stream);
    case 2: return launch<2>(a, multiprocessors, stream);
    case 3: return launch<3>(a, multiprocessors, stream);
    case 4: return launch<4>(a, multiprocessors, stream);
    case 5: return launch<5>(a, multiprocessors, stream);
    case 6: return launch<6>(a, multiprocessors, stream);
    case 7: return launch<7>(a, multiprocessors, stream);
    default: return launch<8>(a, multiprocessors, stream);
  }
}

}  // namespace ao
