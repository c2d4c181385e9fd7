// w = (code - zero) * scale. A thread takes eight codes, which are whole bytes and lie in one group, of several rows: it
// asks for all of them before it uses the first.
#include "cuda/dequantize.h"
#include "cuda/floats.cuh"

#include <cuda_fp8.h>

namespace ao {
namespace {

constexpr int kThreads = 256, kRowsAtOnce = 8;

__device__ inline void store(float* to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16* to, float v) { *to = __float2bfloat16(v); }
__device__ inline void store(__half* to, float v) { *to = __float2half(v); }

template <int BITS>
constexpr int kEightBytes = BITS > 0 ? BITS : 8;

// `bytes` bytes of eight codes. aligned: p is a multiple of kEightBytes, and there are as many.
template <int BITS>
__device__ inline uint64_t load_eight(const uint8_t* p, bool aligned, int bytes) {
  constexpr int kBytes = kEightBytes<BITS>;
  if (kBytes == 4 && aligned) return *reinterpret_cast<const uint32_t*>(p);
  if (kBytes == 8 && aligned) return *reinterpret_cast<const uint64_t*>(p);
  uint64_t word = 0;
#pragma unroll
  for (int i = 0; i < kBytes; ++i)
    if (i < bytes) word |= uint64_t{p[i]} << 8 * i;
  return word;
}

template <int BITS>
__device__ inline void read_codes(uint64_t word, float (&codes)[8]) {
  if constexpr (BITS == kE4m3 || BITS == kE5m2) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const auto pair = static_cast<__nv_fp8x2_storage_t>(word >> 8 * i);
      const __half2 values = __nv_cvt_fp8x2_to_halfraw2(pair, BITS == kE4m3 ? __NV_E4M3 : __NV_E5M2);
      const float2 v = __half22float2(values);
      codes[i] = v.x, codes[i + 1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (BITS == kInt8) codes[i] = static_cast<int8_t>(word >> 8 * i);
      else codes[i] = static_cast<float>(word >> BITS * i & ((1u << BITS) - 1));
    }
  }
}

// Blocks stand over the eights of a row (x) and over rows (y).
template <int BITS, class Out>
__global__ void __launch_bounds__(kThreads) dequantize_eights(const LinearArgs a) {
  const int64_t k = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
  if (k >= a.K) return;
  constexpr int kBytes = kEightBytes<BITS>;
  const int left = a.K - k < 8 ? static_cast<int>(a.K - k) : 8, bytes = BITS > 0 || left == 8 ? kBytes : left;
  const bool aligned = a.row_bytes % kBytes == 0 && reinterpret_cast<uintptr_t>(a.codes) % kBytes == 0;
  const int64_t group = a.G == 1 ? 0 : k / a.group_size, rows_at_once = int64_t{gridDim.y} * blockDim.y * kRowsAtOnce;
  const uint8_t* const column = a.codes + k / 8 * kBytes;
  for (int64_t n = (int64_t{blockIdx.y} * blockDim.y + threadIdx.y) * kRowsAtOnce; n < a.N; n += rows_at_once) {
    uint64_t words[kRowsAtOnce];
    float scale[kRowsAtOnce], zero[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = min(n + r, a.N - 1);
      words[r] = load_eight<BITS>(column + row * a.row_bytes, aligned, bytes);
      int64_t of_scales = row;
      if constexpr (BITS < 0) of_scales = a.block_n > 1 ? row / a.block_n : row;
      const int64_t parameter = of_scales * a.scale_stride + group;
      scale[r] = load_float(a.scale, a.scale_dtype, parameter);
      zero[r] = BITS > 0 ? static_cast<float>(1 << (BITS > 0 ? BITS - 1 : 0)) : 0.0f;
      if (BITS > 0 && a.zero) zero[r] = load_float(a.zero, a.scale_dtype, parameter);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      if (n + r >= a.N) return;
      float codes[8];
      read_codes<BITS>(words[r], codes);
      alignas(16) Out out[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) store(out + i, (codes[i] - zero[r]) * scale[r]);
      Out* const to = static_cast<Out*>(a.y) + (n + r) * a.K + k;
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
}

template <int BITS>
cudaError_t launch(const LinearArgs& a, cudaStream_t stream) {
  const int64_t eights = (a.K + 7) / 8;
  dim3 block(kThreads);  // narrow weights: more rows
  while (block.x > 32 && block.x / 2 >= eights) block.x /= 2, block.y *= 2;
  const int64_t rows = (a.N + block.y * kRowsAtOnce - 1) / (block.y * kRowsAtOnce);
  const dim3 grid(static_cast<unsigned>((eights + block.x - 1) / block.x), static_cast<unsigned>(rows < 65535 ? rows : 65535));
  switch (a.x_dtype) {
    case DType::bf16: dequantize_eights<BITS, __nv_bfloat16><<<grid, block, 0, stream>>>(a); break;
    case DType::f16: dequantize_eights<BITS, __half><<<grid, block, 0, stream>>>(a); break;
    default: dequantize_eights<BITS, float><<<grid, block, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t dequantize(const LinearArgs& a, cudaStream_t stream) {
  switch (a.bits) {
    case kInt8: return launch<kInt8>(a, stream);
    case kE4m3: return launch<kE4m3>(a, stream);
    case kE5m2: return launch<kE5m2>(a, stream);
    case 1: return launch<1>(a, stream);
    case 2: return launch<2>(a, stream);
    case 3: return launch<3>(a, stream);
    case 4: return launch<4>(a, stream);
    case 5: return launch<5>(a, stream);
    case 6: return launch<6>(a, stream);
    case 7: return launch<7>(a, stream);
    default: return launch<8>(a, stream);
  }
}

}  // namespace ao
