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
constexpr int kPrefetch = 8192;

// Bytes of activations that a block of rows uses over and over.
constexpr int64_t kCachedActivations = 24 << 10;

// One thread takes 9.0 us for a 576 x 576 int4 row product, two take 7.8; at 256 x 512 it is 2.9 and 4.4 (Zen 5).
constexpr int64_t kSerialBytes = 128 << 10;
constexpr int64_t kPieceBytes = 16 << 10;

inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
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

// Weight rows whose sums are reduced and stored together.
constexpr int kRowBlock = 16;

// Asks for the scales and zero points of the rows from n on that read_scales will read next.
inline void prefetch_scales(const LinearArgs& a, int64_t n) {
  const int64_t pitch = a.scale_stride * dtype_bytes(a.scale_dtype);
  const int64_t rows = a.N - n < kRowBlock ? a.N - n : kRowBlock;
  for (int64_t byte = 0; byte < rows * pitch; byte += 64) {
    _mm_prefetch(static_cast<const char*>(a.scale) + n * pitch + byte, _MM_HINT_T0);
    if (a.zero) _mm_prefetch(static_cast<const char*>(a.zero) + n * pitch + byte, _MM_HINT_T0);
  }
}

// The scales of `rows` rows as f32 with 16 readable floats behind. Returns the distance between rows.
inline int64_t read_scales(const LinearArgs& a, int64_t n, int rows, float* out) {
  const int64_t count = a.scale_stride ? rows * a.G : a.G;
  for (int64_t i = 0; i < count; i += 16)
    _mm512_storeu_ps(out + i, load_16(a.scale, a.scale_dtype, n * a.scale_stride + i,
                                          static_cast<__mmask16>(low_bits(count - i))));
  return a.scale_stride;
}

// -sum_g scale * (zero - middle) * sums[g] of one row and token, spread over 16 lanes.
template <int B>
inline __m512 zero_correction(const LinearArgs& a, int64_t n, const float* scales, const float* sums) {
  constexpr float middle = B == 0 ? 0.0f : static_cast<float>(1 << (B - 1 > 0 ? B - 1 : 0));
  __m512 total = _mm512_setzero_ps();
  for (int64_t g = 0; g < a.G; g += 16) {
    const auto mask = static_cast<__mmask16>(low_bits(a.G - g));
    const __m512 z = _mm512_sub_ps(load_16(a.zero, a.scale_dtype, n * a.scale_stride + g, mask),
                                   _mm512_set1_ps(middle));
    const __m512 sz = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, scales + g), z);
    total = _mm512_fnmadd_ps(sz, _mm512_maskz_loadu_ps(mask, sums + g), total);
  }
  return total;
}

// Lane i of the result: the sum of the 16 lanes at rows + i * stride.
inline __m512 reduce_rows(const float* rows, int64_t stride) {
  __m512 r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(rows + i * stride);
  for (int i = 0; i < 8; ++i)  // lanes of 128 bits: a0+a2 b0+b2 a1+a3 b1+b3
    r[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
  for (int i = 0; i < 4; ++i)  // a b c d
    r[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(r[2 * i]), _mm512_castps_pd(r[2 * i + 1]))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(r[2 * i]), _mm512_castps_pd(r[2 * i + 1]))));
  for (int i = 0; i < 2; ++i)
    r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
}

// The end of a row: the bytes and the groups of the last chunk that exist.
struct Tail {
  ChunkMask bytes;
  __mmask16 groups;
};

// One chunk of R rows, row_bytes apart, times V vectors. Without Full, groups that do not exist have scale 0: what follows
// in memory, scales of the next row perhaps, may be NaN.
template <int B, int V, int R, bool Whole, bool Full>
[[gnu::always_inline]] inline void dot_chunk(const uint8_t* codes, int64_t row_bytes, Tail tail,
                                             const uint16_t* x, const float* scales, int64_t pitch,
                                             const int32_t* lanes, __m512 sums[R][V]) {
  __m512i w[R][4];
  for (int r = 0; r < R; ++r) Codes<B>::template unpack<Full>(codes + r * row_bytes, tail.bytes, w[r]);
  constexpr int steps = Whole ? 4 : unit_steps<B>;
  // Sums of a unit stay in registers beside the codes and the sums of the row: half of the tokens at a time if they are many.
  constexpr int H = R * V > 8 ? V / 2 : V;
  for (int u = 0; u < 4; u += steps) {
    __m512 scale[R];
    for (int r = 0; r < R; ++r) {
      const float* const of_row = scales + r * pitch;
      scale[r] = Whole ? _mm512_set1_ps(*of_row)
                       : _mm512_permutexvar_ps(_mm512_loadu_si512(lanes + 16 * (u / steps)),
                                               Full ? _mm512_loadu_ps(of_row)
                                                    : _mm512_maskz_loadu_ps(tail.groups, of_row));
    }
#pragma GCC unroll 2
    for (int h = 0; h < V; h += H) {
      __m512 of_unit[R][H];
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < H; ++v) of_unit[r][v] = _mm512_setzero_ps();
      for (int s = u; s < u + steps; ++s)
        for (int v = 0; v < H; ++v) {
          const __m512i activations = _mm512_load_si512(x + (h + v) * kChunk + 32 * s);
          for (int r = 0; r < R; ++r) of_unit[r][v] = dot(of_unit[r][v], w[r][s], activations);
        }
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < H; ++v) sums[r][h + v] = _mm512_fmadd_ps(of_unit[r][v], scale[r], sums[r][h + v]);
    }
  }
}

// y = sums - zero points + bias for a block of rows.
template <int B, int V>
void store_block(const LinearArgs& a, const Activations& x, int64_t m, int tokens, int64_t n, int rows,
                 const float* scales, int64_t pitch, float* lanes) {
  const auto mask = static_cast<__mmask16>(low_bits(rows));
  const __m512 bias = a.bias ? load_16(a.bias, a.bias_dtype, n, mask) : _mm512_setzero_ps();
  for (int t = 0; t < tokens; ++t) {
    float* of_token = lanes + t * x.planes * 16;
    for (int j = 0; j < rows; ++j) {
      float* row = of_token + j * V * 16;
      __m512 sum = _mm512_load_ps(row);
      for (int plane = 1; plane < x.planes; ++plane) sum = _mm512_add_ps(sum, _mm512_load_ps(row + plane * 16));
      if (a.zero)
        sum = _mm512_add_ps(sum, zero_correction<B>(a, n + j, scales + j * pitch, x.sums + (m + t) * a.G));
      if (a.zero || x.planes > 1) _mm512_store_ps(row, sum);
    }
    store_16(a.y, a.x_dtype, (m + t) * a.N + n, mask, _mm512_add_ps(reduce_rows(of_token, V * 16), bias));
  }
}

// Chunks whose activations stay in the first-level cache while a block of rows passes.
template <int V>
inline int64_t chunks_at_once(int64_t n_chunks) {
  const int64_t most = kCachedActivations / (V * kChunk * 2);
  const int64_t parts = (n_chunks + most - 1) / most;
  return (n_chunks + parts - 1) / parts;
}

// What stays the same while the rows of a weight pass by.
template <int B>
struct DotPass {
  const Groups& groups;
  const uint16_t* activations;  // of the first chunk; chunks are x_stride apart
  int64_t x_stride, row_bytes, n_chunks, n_full, at_once;
  Tail tail;
};

// Chunks [from, from + at_once) of R rows; sums in lanes[R][V][16] go on from what is there unless from is 0. As many
// bytes at `next` are asked for meanwhile.
template <int B, int V, int R, bool Whole>
void dot_part(const DotPass<B>& pass, const uint8_t* codes, const uint8_t* next, const float* scales,
              int64_t pitch, int64_t from, float* lanes) {
  constexpr int kBytes = chunk_bytes<B>;
  constexpr int kChunksOfLine = kBytes < 64 ? 64 / kBytes : 1;
  const Groups groups = pass.groups;
  const int64_t end = from + pass.at_once, row_bytes = pass.row_bytes;
  const int64_t to = end < pass.n_full ? end : pass.n_full;
  __m512 sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sums[r][v] = from ? _mm512_load_ps(lanes + (r * V + v) * 16) : _mm512_setzero_ps();
  for (int64_t c = from; c < to; ++c) {
    const uint8_t* p = codes + c * kBytes;
    if (c % kChunksOfLine == 0)
      for (int r = 0; r < R; ++r)
        for (int line = 0; line < kBytes; line += 64)
          _mm_prefetch(next + (c - from) * kBytes + r * row_bytes + line, _MM_HINT_T0);
    dot_chunk<B, V, R, Whole, true>(p, row_bytes, {}, pass.activations + c * pass.x_stride,
                                    scales + groups.first[c], pitch, groups.lanes + c * groups.lanes_stride,
                                    sums);
  }
  if (end >= pass.n_chunks && pass.n_full < pass.n_chunks) {
    const int64_t c = pass.n_full;
    dot_chunk<B, V, R, Whole, false>(codes + c * kBytes, row_bytes, pass.tail,
                                     pass.activations + c * pass.x_stride, scales + groups.first[c], pitch,
                                     groups.lanes + c * groups.lanes_stride, sums);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) _mm512_store_ps(lanes + (r * V + v) * 16, sums[r][v]);
}

// Rows that go through the chunks together: they share the loads of activations.
template <int B, int V>
inline constexpr int kRowsTogether = V == 1 && B < 6 ? 4 : 2;  // from 6 bits on, tables take the registers of two rows

// Tokens [m, m + V / planes) of weight rows [begin, end).
template <int B, int V, bool Whole>
void dot_rows(const LinearArgs& a, const Activations& x, const Groups& groups, int64_t m, int64_t begin,
              int64_t end) {
  constexpr int R = kRowsTogether<B, V>;
  const int tokens = static_cast<int>(x.rows - m < V / x.planes ? x.rows - m : V / x.planes);
  const int64_t n_full = a.row_bytes / chunk_bytes<B>, at_once = chunks_at_once<V>(x.n_chunks);
  const int64_t tail_groups = n_full < x.n_chunks ? a.G - groups.first[n_full] : 0;
  // Vectors beyond the last token are computed from what comes next and dropped.
  const DotPass<B> pass{
      .groups = groups, .activations = x.at(m, 0, 0), .x_stride = x.rows * x.planes * kChunk,
      .row_bytes = a.row_bytes, .n_chunks = x.n_chunks, .n_full = n_full, .at_once = at_once,
      .tail = {chunk_mask(a.row_bytes - n_full * chunk_bytes<B>), static_cast<__mmask16>(low_bits(tail_groups))}};
  auto* scales = static_cast<float*>(scratch(3, (kRowBlock * a.G + 16) * sizeof(float)));
  alignas(64) float lanes[kRowBlock][V][16];
  for (int64_t block = begin; block < end; block += kRowBlock) {
    const int rows = static_cast<int>(end - block < kRowBlock ? end - block : kRowBlock);
    const int64_t pitch = read_scales(a, block, rows, scales);
    prefetch_scales(a, block + kRowBlock);
    const uint8_t* codes = a.codes + block * a.row_bytes;
    for (int64_t from = 0; from < x.n_chunks; from += at_once) {
      for (int j = 0; j < rows;) {
        const int64_t row = j * a.row_bytes;
        // In parts the block's bytes are not read in order; those of the next block are asked for in order.
        const uint8_t* next = at_once == x.n_chunks
                                  ? codes + row + kPrefetch
                                  : codes + kRowBlock * a.row_bytes + (from * rows + j * at_once) * chunk_bytes<B>;
        if (j + R <= rows) {
          dot_part<B, V, R, Whole>(pass, codes + row, next, scales + j * pitch, pitch, from, lanes[j][0]);
          j += R;
        } else {
          dot_part<B, V, 1, Whole>(pass, codes + row, next, scales + j * pitch, pitch, from, lanes[j][0]);
          j += 1;
        }
      }
    }
    store_block<B, V>(a, x, m, tokens, block, rows, scales, pitch, &lanes[0][0][0]);
  }
}

// Up to this many activation vectors dot products are used, above it tiles.
template <int B>
inline constexpr int dot_vectors_limit = 12;

// Small weights run on one thread, and no piece is so small that handing it out shows.
inline int row_threads(const LinearArgs& a) { return a.N * a.row_bytes < kSerialBytes ? 1 : a.n_threads; }

inline int64_t row_grain(const LinearArgs& a) {
  const int64_t pieces = a.n_threads * 4;
  const int64_t least = (kPieceBytes + a.row_bytes - 1) / a.row_bytes;
  const int64_t even = (a.N + pieces - 1) / pieces;
  const int64_t rows = even < least ? least : even;
  return (rows + kRowBlock - 1) / kRowBlock * kRowBlock;
}

}  // namespace ao::avx512
