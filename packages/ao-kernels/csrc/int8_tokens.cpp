// Quantization of tokens to int8; see int8_tokens.h. The binding is for tests: the linears quantize by themselves.
#include "int8_tokens.h"

#ifdef AO_ISA_NAMESPACE

#include <cfloat>
#include <cmath>

#include "floats.h"
#if AO_ISA == AO_IS_avx2 || AO_ISA == AO_IS_avx512
#include <immintrin.h>
#elif AO_ISA == AO_IS_neon
#include <arm_neon.h>
#endif

namespace ao::AO_ISA_NAMESPACE {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;

// Extremes of a token and 0, and the bits of its largest magnitude (above those of infinity for NaN).
struct Range {
  float low, high;
  uint32_t magnitude;
};

// Elements are read W at a time into vectors of float32; the last ones are zero where x ends.
#if AO_ISA == AO_IS_avx512

constexpr int W = 16;
using Reals = __m512;

template <DType D>
Reals load(const void* x, int64_t k, int64_t left) {
  const __mmask16 mask = left >= W ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  if constexpr (D == DType::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + k);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + k);
  if constexpr (D == DType::f16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <DType D>
Range find_range(const void* x, int64_t K) {
  __m512 low = _mm512_setzero_ps(), high = low;
  __m512i magnitude = _mm512_setzero_si512();
  for (int64_t k = 0; k < K; k += W) {
    const Reals v = load<D>(x, k, K - k);
    low = _mm512_min_ps(low, v);
    high = _mm512_max_ps(high, v);
    magnitude = _mm512_max_epu32(magnitude, _mm512_castps_si512(_mm512_abs_ps(v)));
  }
  return {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), _mm512_reduce_max_epu32(magnitude)};
}

// Codes of up to W elements: round to nearest even, then add the zero.
void store_codes(Reals v, float inverse, int zero, int lowest, int8_t* codes, int64_t left) {
  const __mmask16 mask = left >= W ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse)));
  q = _mm512_max_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(zero)), _mm512_set1_epi32(lowest));
  _mm512_mask_cvtsepi32_storeu_epi8(codes, mask, q);
}

#else

constexpr int W = 8;

#if AO_ISA == AO_IS_avx2

using Reals = __m256;

template <DType D>
Reals load(const void* x, int64_t k, int64_t left) {
  alignas(32) float tail[W] = {};
  if (left < W) {
    for (int i = 0; i < left; ++i) tail[i] = load_f32(x, D, k + i);
    return _mm256_load_ps(tail);
  }
  if constexpr (D == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(x) + k);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + k));
  if constexpr (D == DType::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

void store_codes(Reals v, float inverse, int zero, int lowest, int8_t* codes, int64_t left) {
  __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(inverse)));
  q = _mm256_add_epi32(q, _mm256_set1_epi32(zero));
  q = _mm256_min_epi32(_mm256_max_epi32(q, _mm256_set1_epi32(lowest)), _mm256_set1_epi32(127));
  alignas(32) int32_t each[W];
  _mm256_store_si256(reinterpret_cast<__m256i*>(each), q);
  for (int i = 0; i < W && i < left; ++i) codes[i] = static_cast<int8_t>(each[i]);
}

#else

struct Reals {
  float lane[W];
};

template <DType D>
Reals load(const void* x, int64_t k, int64_t left) {
  Reals v = {};
  for (int i = 0; i < W && i < left; ++i) v.lane[i] = load_f32(x, D, k + i);
  return v;
}

// Nearest even. Not by adding a large number: the compiler may fuse that addition with the product before it.
int nearest(float value) {
#if AO_ISA == AO_IS_neon
  return vcvtns_s32_f32(value);
#else
  return static_cast<int>(std::nearbyint(value));
#endif
}

void store_codes(const Reals& v, float inverse, int zero, int lowest, int8_t* codes, int64_t left) {
  for (int i = 0; i < W && i < left; ++i) {
    const int q = nearest(v.lane[i] * inverse) + zero;
    codes[i] = static_cast<int8_t>(q < lowest ? lowest : q > 127 ? 127 : q);
  }
}

#endif

template <DType D>
Range find_range(const void* x, int64_t K) {
  float low[W] = {}, high[W] = {};
  uint32_t magnitude[W] = {};
  for (int64_t k = 0; k < K; k += W) {
    const Reals reals = load<D>(x, k, K - k);
    float v[W];
    std::memcpy(v, &reals, sizeof v);
    for (int i = 0; i < W; ++i) {
      low[i] = v[i] < low[i] ? v[i] : low[i];
      high[i] = v[i] > high[i] ? v[i] : high[i];
      const uint32_t bits = f32_to_bits(v[i]) & 0x7fffffff;
      magnitude[i] = bits > magnitude[i] ? bits : magnitude[i];
    }
  }
  Range all = {0.0f, 0.0f, 0};
  for (int i = 0; i < W; ++i) {
    all.low = low[i] < all.low ? low[i] : all.low;
    all.high = high[i] > all.high ? high[i] : all.high;
    all.magnitude = magnitude[i] > all.magnitude ? magnitude[i] : all.magnitude;
  }
  return all;
}

#endif

template <DType D>
void quantize(const void* x, int64_t K, bool symmetric, int8_t* codes, float* scale, float* zero) {
  const Range range = find_range<D>(x, K);
  *zero = 0.0f;
  if (range.magnitude >= kInfinity) {
    *scale = bits_to_f32(0x7fc00000);
    std::memset(codes, 0, static_cast<size_t>(K));
    return;
  }
  const float span = range.high - range.low;
  float s = symmetric ? bits_to_f32(range.magnitude) / 127.0f
            : f32_to_bits(span) == kInfinity ? range.high / 255.0f - range.low / 255.0f
                                             : span / 255.0f;
  s = s < FLT_MIN ? FLT_MIN : s;
  const float inverse = 1.0f / s;
  if (!symmetric) {
    volatile float shift = range.low * inverse;  // volatile: rounded before it is subtracted, never fused
    const float z = std::nearbyint(-128.0f - shift);
    *zero = z < -128.0f ? -128.0f : z > 127.0f ? 127.0f : z;
  }
  *scale = s;
  const int offset = static_cast<int>(*zero), lowest = symmetric ? -127 : -128;
  for (int64_t k = 0; k < K; k += W)
    store_codes(load<D>(x, k, K - k), inverse, offset, lowest, codes + k, K - k);
}

}  // namespace

void quantize_token(const void* x, DType dtype, int64_t K, bool symmetric, int8_t* codes,
                    float* scale, float* zero) {
  switch (dtype) {
    case DType::bf16: return quantize<DType::bf16>(x, K, symmetric, codes, scale, zero);
    case DType::f16: return quantize<DType::f16>(x, K, symmetric, codes, scale, zero);
    default: return quantize<DType::f32>(x, K, symmetric, codes, scale, zero);
  }
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "cpu_features.h"
#include "parallel.h"
#include "tensor.h"

AO_BY_ISA(ao::QuantizeToken, quantize_token)

// x (M, K) -> (codes (M, K) int8, scale (M, 1), zero (M, 1))
static PyObject* int8_tokens(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::Tensor x;
  int64_t n_threads;
  if (n_args != 3 || !ao::read_int(args[0], &n_threads) || !ao::read_tensor(args[1], &x) ||
      x.ndim != 2 || !x.contiguous() || !ao::is_activation_dtype(x.dtype))
    return ao::not_implemented();
  const bool symmetric = args[2] == Py_True;
  const int64_t M = x.shape[0], K = x.shape[1], per_token[2] = {M, 1};
  void *codes, *scale, *zero;
  PyObject* const result = PyTuple_New(3);
  PyTuple_SET_ITEM(result, 0, ao::new_tensor(2, x.shape, ao::DType::i8, &codes));
  PyTuple_SET_ITEM(result, 1, ao::new_tensor(2, per_token, ao::DType::f32, &scale));
  PyTuple_SET_ITEM(result, 2, ao::new_tensor(2, per_token, ao::DType::f32, &zero));
  ao::QuantizeToken* const quantize = ao::quantize_token_for(ao::current_isa());
  ao::parallel_for(M, 1, static_cast<int>(n_threads), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      quantize(x.as<char>() + m * K * ao::dtype_bytes(x.dtype), x.dtype, K, symmetric,
               static_cast<int8_t*>(codes) + m * K, static_cast<float*>(scale) + m,
               static_cast<float*>(zero) + m);
  });
  return result;
}

void register_int8_tokens(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_tokens", int8_tokens, "(n_threads, x, symmetric) -> (codes, scale, zero)");
}

#endif
