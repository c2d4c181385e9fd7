// Weight-only linear for few tokens: each weight row is read once, in order, and multiplied with every token.
//
// Chunk by chunk (128 codes) four registers of bf16 codes meet V activation vectors: four vdpbf16ps each, whose 16
// float32 sums are multiplied by the group scale and added up. One row at a time is one linear stream
// through the whole weight, which the hardware prefetcher follows.
#pragma once
#include "activations_avx512.h"
#include "floats.h"
#include "linear.h"
#include "scratch.h"

namespace ao::avx512 {

// The most activation vectors (tokens x planes) a pass multiplies.
constexpr int kDotVectors = 8;

// Bytes ahead of the row stream that are asked for.
constexpr int kPrefetch = 2048;

constexpr int64_t kSerialBytes = 64 << 10;
constexpr int64_t kPieceBytes = 16 << 10;

inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Up to 16 scales as f32, 0 outside the mask.
inline __m512 load_scales(const void* scale, DType dtype, int64_t at, __mmask16 mask) {
  return load_x(scale, dtype, at, mask);
}

// Which group every chunk, and inside it every lane, belongs to.
struct Groups {
  const int32_t* first;   // [n_chunks] group of the chunk's first code
  const int32_t* lanes;   // [n_chunks or 1][units][16] group of a 32-bit lane, minus first
  int64_t lanes_stride;   // from one chunk to the next; 0 when all are alike
  bool whole;             // every chunk lies in one group: lanes is not used
};

template <int B>
Groups plan_groups(const LinearArgs& a, int64_t n_chunks) {
  constexpr int units = 4 / unit_steps<B>;
  Groups plan;
  plan.whole = a.G == 1 || a.group_size % kChunk == 0;
  const bool alike = kChunk % a.group_size == 0;
  const int64_t n_patterns = plan.whole ? 0 : alike ? 1 : n_chunks;
  auto* first = static_cast<int32_t*>(scratch(2, (n_chunks + n_patterns * units * 16) * sizeof(int32_t)));
  int32_t* lanes = first + n_chunks;
  for (int64_t c = 0; c < n_chunks; ++c) first[c] = static_cast<int32_t>(c * kChunk / a.group_size);
  for (int64_t c = 0; c < n_patterns; ++c)
    for (int u = 0; u < units; ++u)
      for (int i = 0; i < 16; ++i) {
        const int64_t k = c * kChunk + code_at<B>(u * unit_steps<B>, 2 * i);
        lanes[(c * units + u) * 16 + i] = static_cast<int32_t>(k / a.group_size) - first[c];
      }
  plan.first = first;
  plan.lanes = lanes;
  plan.lanes_stride = alike ? 0 : units * 16;
  return plan;
}

// A row's scales as f32 with 16 zeros behind, and its part of sum_g scale * (zero - middle) * sums[g].
template <int B>
inline void read_scales(const LinearArgs& a, int64_t n, float* scales, const Activations& x, int64_t m,
                        int tokens, float* corrections) {
  const int64_t row = n * a.scale_stride;
  constexpr float middle = B == 0 ? 0.0f : static_cast<float>(1 << (B - 1 > 0 ? B - 1 : 0));
  __m512 totals[kDotVectors] = {};
  for (int64_t g = 0; g < a.G; g += 16) {
    const auto mask = static_cast<__mmask16>(low_bits(a.G - g));
    const __m512 s = load_scales(a.scale, a.scale_dtype, row + g, mask);
    _mm512_storeu_ps(scales + g, s);
    if (!a.zero) continue;
    const __m512 z = _mm512_sub_ps(load_scales(a.zero, a.scale_dtype, row + g, mask), _mm512_set1_ps(middle));
    const __m512 sz = _mm512_mul_ps(s, z);
    for (int t = 0; t < tokens; ++t)
      totals[t] = _mm512_fmadd_ps(sz, _mm512_maskz_loadu_ps(mask, x.sums + (m + t) * a.G + g), totals[t]);
  }
  _mm512_storeu_ps(scales + a.G, _mm512_setzero_ps());
  for (int t = 0; t < tokens; ++t) corrections[t] = a.zero ? _mm512_reduce_add_ps(totals[t]) : 0.0f;
}

template <int B, int V, bool Whole, bool Full>
inline __attribute__((always_inline)) void dot_chunk(const uint8_t* codes, ChunkMask mask, const uint16_t* x,
                                                     int64_t x_stride, const float* scales,
                                                     const int32_t* lanes, __m512 sums[V]) {
  __m512i w[4];
  Codes<B>::template unpack<Full>(codes, mask, w);
  if constexpr (Whole) {
    const __m512 scale = _mm512_set1_ps(*scales);
    for (int v = 0; v < V; ++v) {
      __m512 sum = _mm512_setzero_ps();
      for (int s = 0; s < 4; ++s) sum = dot(sum, w[s], _mm512_load_si512(x + v * x_stride + 32 * s));
      sums[v] = _mm512_fmadd_ps(sum, scale, sums[v]);
    }
  } else {
    const __m512 window = _mm512_loadu_ps(scales);
    constexpr int steps = unit_steps<B>;
    for (int u = 0; u < 4 / steps; ++u) {
      const __m512 scale = _mm512_permutexvar_ps(_mm512_loadu_si512(lanes + 16 * u), window);
      for (int v = 0; v < V; ++v) {
        __m512 sum = _mm512_setzero_ps();
        for (int s = u * steps; s < (u + 1) * steps; ++s)
          sum = dot(sum, w[s], _mm512_load_si512(x + v * x_stride + 32 * s));
        sums[v] = _mm512_fmadd_ps(sum, scale, sums[v]);
      }
    }
  }
}

// Tokens [m, m + V / planes) of weight rows [begin, end).
template <int B, int V, bool Whole>
void dot_rows(const LinearArgs& a, const Activations& x, const Groups& groups, int64_t m, int64_t begin,
              int64_t end) {
  const int tokens = static_cast<int>(x.rows - m < V / x.planes ? x.rows - m : V / x.planes);
  const int64_t n_full = a.row_bytes / chunk_bytes<B>;
  const ChunkMask tail = chunk_mask(a.row_bytes - n_full * chunk_bytes<B>);
  auto* scales = static_cast<float*>(scratch(3, (a.G + 16) * sizeof(float)));
  // Vectors beyond the last token are computed from spare rows and dropped.
  const uint16_t* activations = x.row(m, 0);
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = a.codes + n * a.row_bytes;
    float corrections[kDotVectors];
    read_scales<B>(a, n, scales, x, m, tokens, corrections);
    __m512 sums[V];
    for (int v = 0; v < V; ++v) sums[v] = _mm512_setzero_ps();
    for (int64_t c = 0; c < n_full; ++c) {
      const uint8_t* p = codes + c * chunk_bytes<B>;
      for (int line = 0; line < chunk_bytes<B>; line += 64) _mm_prefetch(p + kPrefetch + line, _MM_HINT_T0);
      dot_chunk<B, V, Whole, true>(p, {}, activations + c * kChunk, x.stride, scales + groups.first[c],
                                   groups.lanes + c * groups.lanes_stride, sums);
    }
    if (n_full < x.n_chunks)
      dot_chunk<B, V, Whole, false>(codes + n_full * chunk_bytes<B>, tail, activations + n_full * kChunk,
                                    x.stride, scales + groups.first[n_full],
                                    groups.lanes + n_full * groups.lanes_stride, sums);
    const float bias = a.bias ? load_f32(a.bias, a.bias_dtype, n) : 0.0f;
    // Through memory: an array of registers indexed at run time would live in memory in the loop above.
    alignas(64) float lanes[V][16];
    for (int v = 0; v < V; ++v) _mm512_store_ps(lanes[v], sums[v]);
    for (int t = 0; t < tokens; ++t) {
      __m512 total = _mm512_load_ps(lanes[t * x.planes]);
      for (int plane = 1; plane < x.planes; ++plane)
        total = _mm512_add_ps(total, _mm512_load_ps(lanes[t * x.planes + plane]));
      const float y = _mm512_reduce_add_ps(total) - corrections[t] + bias;
      store_f32(a.y, a.x_dtype, (m + t) * a.N + n, y);
    }
  }
}

// Up to this many activation vectors dot products are used, above it tiles.
template <int B>
inline constexpr int dot_vectors_limit = 8;

// Small weights run on one thread, and no piece is so small that handing it out shows.
inline int row_threads(const LinearArgs& a) { return a.N * a.row_bytes < kSerialBytes ? 1 : a.n_threads; }

inline int64_t row_grain(const LinearArgs& a) {
  const int64_t pieces = a.n_threads * 8;
  const int64_t least = (kPieceBytes + a.row_bytes - 1) / a.row_bytes;
  const int64_t even = (a.N + pieces - 1) / pieces;
  return even < least ? least : even;
}

}  // namespace ao::avx512
