// Rows of a quantized table for every instruction set: codes become float32, (code - zero) * scale is formed, and rounded.
#pragma once
#include "embedding.h"
#include "floats.h"
#include "parallel.h"
#if AO_ISA == AO_IS_avx512
#include "int8_codes_avx512.h"
#else
#include "int8_lanes.h"
#endif

namespace ao::AO_ISA_NAMESPACE {
namespace {

constexpr int64_t kAloneCodes = 1 << 16;  // fewer codes are not worth a second thread
constexpr int64_t kStretch = 64;          // codes at a time

#if AO_ISA == AO_IS_avx512

// Codes [k, k + n) of a row, n at most kStretch, to elements at `at` of out.
template <int P, DType D>
inline void write_codes(const EmbeddingArgs& a, const ChunkCodes<P>& codes, const uint8_t* row, int64_t k,
                        int64_t n, float scale, float zero, int64_t at) {
  const int64_t byte = a.bits ? k / 8 * a.bits : k;
  const __m512i bytes = codes.plane(codes.load(row + byte, a.row_bytes - byte), 0);
  // int8 codes come with 128 added.
  const __m512 shift = _mm512_set1_ps(a.bits ? zero : 128.0f), factor = _mm512_set1_ps(scale);
  alignas(64) uint8_t each[kStretch];
  _mm512_store_si512(each, bytes);
  for (int64_t i = 0; i < n; i += 16) {
    const __m128i part = _mm_load_si128(reinterpret_cast<const __m128i*>(each + i));
    const __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(part));
    store_16(a.out, D, at + i, static_cast<__mmask16>(low_bits(n - i)),
             _mm512_mul_ps(_mm512_sub_ps(code, shift), factor));
  }
}

#else

// Stands for the AVX-512 unpacking of the same name.
template <int>
struct ChunkCodes {
  explicit ChunkCodes(int) {}
};

template <int P, DType D>
inline void write_codes(const EmbeddingArgs& a, const ChunkCodes<P>&, const uint8_t* row, int64_t k, int64_t n,
                        float scale, float zero, int64_t at) {
  const int middle = a.bits ? 1 << (a.bits - 1) : 0;
  Code codes[kStretch];
  if (a.bits == 0) {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(row[k + i]);
  } else {
    const uint8_t* unit = row + k / 8 * a.bits;
    for (int64_t i = 0; i < n; i += 8, unit += a.bits) {
      uint64_t word = 0;
      for (int b = 0; b < a.bits; ++b) word |= uint64_t{unit[b]} << (8 * b);
      spread_eight(word, a.bits, codes + i);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    store_f32(a.out, D, at + i, (static_cast<float>(codes[i] + middle) - zero) * scale);
}

#endif

template <int P, DType D>
void write_row(const EmbeddingArgs& a, const ChunkCodes<P>& codes, int64_t i) {
  const int64_t n = a.row(i);
  const uint8_t* const row = a.codes + n * a.row_bytes;
  const float middle = static_cast<float>(a.bits ? 1 << (a.bits - 1) : 0);
  for (int64_t g = 0; g < a.G; ++g) {
    const int64_t at = n * a.scale_stride + g, begin = g * a.group_size;
    const int64_t end = begin + a.group_size < a.K ? begin + a.group_size : a.K;
    const float scale = load_f32(a.scale, a.scale_dtype, at);
    const float zero = a.zero ? load_f32(a.zero, a.scale_dtype, at) : middle;
    for (int64_t k = begin; k < end; k += kStretch)
      write_codes<P, D>(a, codes, row, k, end - k < kStretch ? end - k : kStretch, scale, zero, i * a.K + k);
  }
}

// Rows come from anywhere in the table: they are asked for kRowsAhead rows early (1024 rows of 576 4-bit codes, one core,
// Zen 5: 394 us without, 146 with).
constexpr int64_t kRowsAhead = 8;

inline void prefetch_row(const EmbeddingArgs& a, int64_t i) {
  const int64_t n = a.row(i), scale_bytes = a.scale_stride * dtype_bytes(a.scale_dtype);
  const uint8_t* const row = a.codes + n * a.row_bytes;
  const char* const scale = static_cast<const char*>(a.scale) + n * scale_bytes;
  for (int64_t byte = 0; byte < a.row_bytes; byte += 64) __builtin_prefetch(row + byte);
  for (int64_t byte = 0; byte < scale_bytes; byte += 64) __builtin_prefetch(scale + byte);
}

// P 1: codes are bytes; P 0: any width.
template <int P>
void write_rows(const EmbeddingArgs& a, int64_t begin, int64_t end) {
  const ChunkCodes<P> codes(a.bits);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kRowsAhead < end) prefetch_row(a, i + kRowsAhead);
    if (a.out_dtype == DType::bf16) write_row<P, DType::bf16>(a, codes, i);
    else if (a.out_dtype == DType::f16) write_row<P, DType::f16>(a, codes, i);
    else write_row<P, DType::f32>(a, codes, i);
  }
}

inline void embedding_rows(const EmbeddingArgs& a) {
  const int threads = a.count * a.K < kAloneCodes ? 1 : a.n_threads;
  parallel_for(a.count, 1 + (kAloneCodes / 4) / a.K, threads, [&](int64_t begin, int64_t end) {
    if (a.bits == 0 || a.bits == 8) write_rows<1>(a, begin, end);
    else write_rows<0>(a, begin, end);
  });
}

}  // namespace
}  // namespace ao::AO_ISA_NAMESPACE
