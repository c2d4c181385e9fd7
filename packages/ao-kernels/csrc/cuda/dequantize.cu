// w = (code - zero) * scale. A thread takes eight codes, which are whole bytes and lie in one group, of several rows: it
// asks for all of them, and for their scales, before it uses the first. So the dtype of scales is one of the template: a switch
// for each of them made a thread wait for one scale after the other.
#include "cuda/dequantize.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <type_traits>

namespace ao {
namespace {

constexpr int kThreads = 256, kRowsAtOnce = 8;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ inline void store(float* to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16* to, float v) { *to = __float2bfloat16(v); }
__device__ inline void store(__half* to, float v) { *to = __float2half(v); }

__device__ inline uint32_t bits_of(__nv_bfloat162 v) { return *reinterpret_cast<const uint32_t*>(&v); }
__device__ inline uint32_t bits_of(__half2 v) { return *reinterpret_cast<const uint32_t*>(&v); }

// To an address that is a multiple of 16. In assembly: the compiler took some stores of 16 bytes apart.
__device__ inline void store_four(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ inline void store_eight(float* to, const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4)
    store_four(to + i, __float_as_uint(v[i]), __float_as_uint(v[i + 1]), __float_as_uint(v[i + 2]), __float_as_uint(v[i + 3]));
}
__device__ inline void store_eight(__nv_bfloat16* to, const float (&v)[8]) {
  const auto pair = [&](int i) { return bits_of(__floats2bfloat162_rn(v[i], v[i + 1])); };
  store_four(to, pair(0), pair(2), pair(4), pair(6));
}
__device__ inline void store_eight(__half* to, const float (&v)[8]) {
  const auto pair = [&](int i) { return bits_of(__floats2half2_rn(v[i], v[i + 1])); };
  store_four(to, pair(0), pair(2), pair(4), pair(6));
}

template <int BITS>
constexpr int kEightBytes = BITS > 0 ? BITS : 8;

// `bytes` bytes of eight codes. WHOLE: there are kEightBytes, and p is a multiple of them where they are 4 or 8. They are read once:
// they are the first to leave the L2 cache, where weights should stay.
template <int BITS, bool WHOLE>
__device__ inline uint64_t load_eight(const uint8_t* p, int bytes) {
  constexpr int kBytes = kEightBytes<BITS>;
  if constexpr (WHOLE && kBytes == 4) return __ldcs(reinterpret_cast<const unsigned int*>(p));
  if constexpr (WHOLE && kBytes == 8) return __ldcs(reinterpret_cast<const unsigned long long*>(p));
  uint64_t word = 0;
#pragma unroll
  for (int i = 0; i < kBytes; ++i)
    if (WHOLE || i < bytes) word |= uint64_t{p[i]} << 8 * i;
  return word;
}

constexpr float kTwo23 = 8388608.0f;

// What eight codes are after read_codes, less themselves: integers become the last bits of 2^23, for conversion instructions are
// several times slower. Whole numbers below 2^24 are exact, so are their differences.
template <int BITS>
constexpr float kShift = BITS > 0 ? kTwo23 : BITS == kInt8 ? kTwo23 + 128.0f : 0.0f;

template <int BITS>
__device__ inline void read_codes(uint64_t word, float (&codes)[8]) {
  constexpr uint32_t kBits = 0x4b000000;  // of 2^23
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (BITS == kE4m3 || BITS == kE5m2) {
      if (i % 2) continue;
      const auto pair = static_cast<__nv_fp8x2_storage_t>(word >> 8 * i);
      const __half2 values = __nv_cvt_fp8x2_to_halfraw2(pair, BITS == kE4m3 ? __NV_E4M3 : __NV_E5M2);
      const float2 v = __half22float2(values);
      codes[i] = v.x, codes[i + 1] = v.y;
    } else if constexpr (BITS == kInt8) {
      const uint32_t plus128 = static_cast<uint32_t>(word >> i / 4 * 32) ^ 0x80808080u;
      codes[i] = __uint_as_float(__byte_perm(plus128, kBits, 0x7540 | i % 4));
    } else {
      const uint32_t code = static_cast<uint32_t>(word >> BITS * i) & ((1u << BITS) - 1);
      codes[i] = __uint_as_float(kBits | code);
    }
  }
}

// Blocks stand over the eights of a row (x) and over rows (y), from row first_n on. WHOLE: K and the number of rows are multiples of
// eight, and codes are aligned.
template <int BITS, bool WHOLE, class Scale, class Out>
__global__ void __launch_bounds__(kThreads, WHOLE && (BITS == 4 || BITS <= 0) ? 4 : 2)
dequantize_eights(const LinearArgs a, const int64_t first_n) {
  const int64_t k = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
  if (k >= a.K) return;
  constexpr int kBytes = kEightBytes<BITS>;
  const int left = WHOLE || a.K - k >= 8 ? 8 : static_cast<int>(a.K - k), bytes = BITS > 0 || left == 8 ? kBytes : left;
  const int64_t group = a.G == 1 ? 0 : k / a.group_size, rows_at_once = int64_t{gridDim.y} * blockDim.y * kRowsAtOnce;
  for (int64_t n = first_n + (int64_t{blockIdx.y} * blockDim.y + threadIdx.y) * kRowsAtOnce; n < a.N; n += rows_at_once) {
    const int rows = WHOLE || a.N - n >= kRowsAtOnce ? kRowsAtOnce : static_cast<int>(a.N - n);
    const auto row = [&](int r) { return WHOLE || r < rows ? r : rows - 1; };
    const auto parameter = [&](int r) {
      if constexpr (BITS < 0) {
        if (a.block_n > 1) return (n + row(r)) / a.block_n * a.scale_stride + group;
      }
      return (n + row(r)) * a.scale_stride + group;
    };
    const uint8_t* const codes = a.codes + n * a.row_bytes + k / 8 * kBytes;
    Out* const to = static_cast<Out*>(a.y) + n * a.K + k;
    uint64_t words[kRowsAtOnce];
    Scale scales[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) words[r] = load_eight<BITS, WHOLE>(codes + row(r) * a.row_bytes, bytes);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) scales[r] = static_cast<const Scale*>(a.scale)[parameter(r)];
    // offset: kShift, and zero where all codes have the same. minus: takes another zero away.
    const auto write = [&](float offset, auto&& minus) {
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (!WHOLE && r >= rows) return;
        const float scale = to_float(scales[r]);
        float w[8];
        read_codes<BITS>(words[r], w);
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = minus(w[i] - offset, r) * scale;
        if constexpr (WHOLE) {
          store_eight(to + r * a.K, w);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (i < left) store(to + r * a.K + i, w[i]);
        }
      }
    };
    if (BITS > 0 && a.zero) {
      Scale zeros[kRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) zeros[r] = static_cast<const Scale*>(a.zero)[parameter(r)];
      write(kTwo23, [&](float code, int r) { return code - to_float(zeros[r]); });
    } else {
      constexpr float kMiddle = BITS > 0 ? static_cast<float>(1 << (BITS > 0 ? BITS - 1 : 0)) : 0.0f;
      write(kShift<BITS> + kMiddle, [](float code, int) { return code; });
    }
  }
}

template <int BITS>
cudaError_t launch(const LinearArgs& a, cudaStream_t stream) {
  const int64_t eights = (a.K + 7) / 8;
  dim3 block(kThreads);  // narrow weights: more rows
  while (block.x > 32 && block.x / 2 >= eights) block.x /= 2, block.y *= 2;
  const auto start_at = [&](auto whole, auto scale, auto out, int64_t first_n, int64_t last_n) {
    if (first_n == last_n) return;
    LinearArgs part = a;
    part.N = last_n;
    const int64_t rows = (last_n - first_n + block.y * kRowsAtOnce - 1) / (block.y * kRowsAtOnce);
    const dim3 grid(static_cast<unsigned>((eights + block.x - 1) / block.x), static_cast<unsigned>(rows < 65535 ? rows : 65535));
    dequantize_eights<BITS, whole(), decltype(scale), decltype(out)><<<grid, block, 0, stream>>>(part, first_n);
  };
  constexpr int kLoad = kEightBytes<BITS> % 4 == 0 ? kEightBytes<BITS> : 1;  // bytes that are loaded at once
  const bool whole = a.K % 8 == 0 && reinterpret_cast<uintptr_t>(a.codes) % kLoad == 0;
  const int64_t whole_rows = whole ? a.N / kRowsAtOnce * kRowsAtOnce : 0;
  const auto start = [&](auto scale, auto out) {
    start_at(std::true_type{}, scale, out, 0, whole_rows);
    start_at(std::false_type{}, scale, out, whole_rows, a.N);
  };
  const auto start_with = [&](auto scale) {
    switch (a.x_dtype) {
      case DType::bf16: return start(scale, __nv_bfloat16{});
      case DType::f16: return start(scale, __half{});
      default: return start(scale, float{});
    }
  };
  if constexpr (BITS >= 0) {  // scales of float8 are float32
    if (a.scale_dtype == DType::bf16) start_with(__nv_bfloat16{});
    else start_with(float{});
  } else {
    start_with(float{});
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
