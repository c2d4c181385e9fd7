// w = (code - zero) * scale. A thread takes eight codes of a row, which are `bits` whole bytes and lie in one group.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/dequantize.h"

namespace ao {
namespace {

__device__ inline float load_float(const void* data, DType dtype, int64_t at) {
  return dtype == DType::bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at])
                              : static_cast<const float*>(data)[at];
}

__device__ inline void store(float* to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16* to, float v) { *to = __float2bfloat16(v); }
__device__ inline void store(__half* to, float v) { *to = __float2half(v); }

// Eight codes as integers; BITS 0: int8.
template <int BITS>
__device__ inline void load_codes(const uint8_t* p, float (&codes)[8]) {
  constexpr int kBytes = BITS ? BITS : 8;
  uint64_t word = 0;
  if constexpr (kBytes == 4) {
    word = *reinterpret_cast<const uint32_t*>(p);  // rows are multiples of 4 bytes, and the first is aligned
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

template <int BITS, class Out>
__global__ void dequantize_eights(const LinearArgs a) {
  const int64_t of_row = (a.K + 7) / 8, count = a.N * of_row;
  Out* const w = static_cast<Out*>(a.y);
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < count; at += int64_t{gridDim.x} * blockDim.x) {
    const int64_t n = at / of_row, k = (at - n * of_row) * 8;
    const int64_t parameter = n * a.scale_stride + k / a.group_size;
    const float scale = load_float(a.scale, a.scale_dtype, parameter);
    const float zero = a.zero ? load_float(a.zero, a.scale_dtype, parameter) : BITS ? static_cast<float>(1 << (BITS - 1 + !BITS)) : 0.0f;
    const int left = a.K - k < 8 ? static_cast<int>(a.K - k) : 8;
    alignas(16) Out out[8];
    if (BITS || left == 8) {
      float codes[8];
      load_codes<BITS>(a.codes + n * a.row_bytes + k / 8 * (BITS ? BITS : 8), codes);
#pragma unroll
      for (int i = 0; i < 8; ++i) store(out + i, (codes[i] - zero) * scale);
    } else {
      for (int i = 0; i < left; ++i)
        store(out + i, static_cast<float>(reinterpret_cast<const int8_t*>(a.codes)[n * a.row_bytes + k + i]) * scale);
    }
    Out* const to = w + n * a.K + k;
    if (a.K % 8 == 0) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(out) / 16); ++i)
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(out)[i];
    } else {
      for (int i = 0; i < left; ++i) to[i] = out[i];
    }
  }
}

template <int BITS>
cudaError_t launch(const LinearArgs& a, int multiprocessors, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t blocks = (a.N * ((a.K + 7) / 8) + kThreads - 1) / kThreads;
  const int64_t most = int64_t{multiprocessors} * 32;
  const dim3 grid(static_cast<unsigned>(blocks < most ? blocks : most));
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
