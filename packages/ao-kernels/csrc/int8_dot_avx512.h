// Few tokens: dot products straight from the rows of codes, a few rows at a time, every byte of the weight read once and
// nearly in the order of addresses.
#pragma once
#include "int8_codes_avx512.h"

namespace ao::avx512 {
namespace {

constexpr int kPair = 2;
// The weight is prefetched this many bytes ahead of its use, across rows: hardware prefetching stops at each row.
constexpr int64_t kAhead = 8192;

// Groups that fit: of whole chunks, or several whole groups in a chunk, or one group a row.
template <int P>
bool dot_fits(const LinearArgs& a) {
  constexpr int kCodes = ChunkCodes<P>::kCodes;
  return a.G == 1 || kCodes % a.group_size == 0 || a.group_size % kCodes == 0;
}

// acc[t * kBlockRows + r] = sum of (c - zero) * scale * q for R rows of the weight from row n on and the T tokens.
// Many: a group has more than two chunks, and is summed up in int32; else every chunk is scaled on its own.
template <int P, int T, int R, bool Many>
void dot_rows(const LinearArgs& a, const ChunkCodes<P>& codes, const Tokens& x, int64_t n, float* acc) {
  constexpr int kRegisters = ChunkCodes<P>::kRegisters, kCodes = ChunkCodes<P>::kCodes;
  // Sums of at most this many codes are exact in float32 in each lane: 4096 / 16 * 255 * 128 < 2**24.
  constexpr int64_t kExact = 4096;
  const int64_t scale_bytes = a.scale_stride * dtype_bytes(a.scale_dtype);
  const uint8_t* const row = a.codes + n * a.row_bytes;
  const char* const scale = static_cast<const char*>(a.scale) + n * scale_bytes;
  const char* const zero = a.zero ? static_cast<const char*>(a.zero) + n * scale_bytes : nullptr;
  const uint8_t* ahead = row + kAhead;
  const int64_t scale_ahead = scale_bytes * (kAhead / a.row_bytes + R);
  const int8_t* token = x.codes;
  int64_t position = 0, k = 0;
  __m512 sums[R][T];
#pragma GCC unroll 9
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();

  const auto clear = [](__m512i(&dots)[R][T]) __attribute__((always_inline)) {
#pragma GCC unroll 9
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t) dots[r][t] = _mm512_setzero_si512();
  };
  const auto chunk = [&](__m512i(&dots)[R][T], bool whole) __attribute__((always_inline)) {
    __m512i planes[R][kRegisters];
#pragma GCC unroll 9
    for (int r = 0; r < R; ++r) {
      const uint8_t* const p = row + r * a.row_bytes + position;
      _mm_prefetch(reinterpret_cast<const char*>(ahead + r * codes.bytes), _MM_HINT_T0);
      const __m512i bytes = whole ? codes.load(p) : codes.load(p, a.row_bytes - position);
#pragma GCC unroll 9
      for (int i = 0; i < kRegisters; ++i) planes[r][i] = codes.plane(bytes, i);
    }
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 9
      for (int i = 0; i < kRegisters; ++i) {
        const __m512i q = _mm512_loadu_si512(token + t * x.stride + 64 * i);
#pragma GCC unroll 9
        for (int r = 0; r < R; ++r) dots[r][t] = dot4(dots[r][t], planes[r][i], q);
      }
    ahead += R * codes.bytes;
    position += codes.bytes;
    token += kCodes;
  };

  // Which of 16 scales lane i takes, times `spread`: chunks a group, where a chunk does not hold whole groups.
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const int in_chunk = kCodes > a.group_size && a.G > 1 ? kCodes / static_cast<int>(a.group_size) : 1;
  const __m128i spread = _mm_cvtsi32_si128(!Many && a.group_size == 2 * kCodes);
  const __m512i first = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(__builtin_ctz(16 / in_chunk)));
  const __m512i step = _mm512_set1_epi32(in_chunk);
  const float middle_code = static_cast<float>(middle(a));

  for (int64_t g = 0; g < a.G; g += 16) {
    const __mmask16 mask = a.G - g >= 16 ? 0xffff : static_cast<__mmask16>((1u << (a.G - g)) - 1);
    __m512 scales[R];
#pragma GCC unroll 9
    for (int r = 0; r < R; ++r) {
      const char* const s = scale + r * scale_bytes;
      _mm_prefetch(s + scale_ahead + g * dtype_bytes(a.scale_dtype), _MM_HINT_T0);
      scales[r] = load_16(s, a.scale_dtype, g, mask);
      const __m512 zeros = zero ? load_16(zero + r * scale_bytes, a.scale_dtype, g, mask)
                                : _mm512_set1_ps(middle_code);
      const __m512 shift = _mm512_mul_ps(scales[r], zeros);
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t)
        sums[r][t] = _mm512_fnmadd_ps(shift, _mm512_loadu_ps(x.group_sums + t * x.n_sums + g), sums[r][t]);
    }
    __m512i place = first;
    const auto add_scaled = [&](const __m512i(&dots)[R][T]) __attribute__((always_inline)) {
      const __m512i index = _mm512_srl_epi32(place, spread);
#pragma GCC unroll 9
      for (int r = 0; r < R; ++r) {
        const __m512 each = _mm512_permutexvar_ps(index, scales[r]);
#pragma GCC unroll 9
        for (int t = 0; t < T; ++t)
          sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][t]), each, sums[r][t]);
      }
      place = _mm512_add_epi32(place, step);
    };
    const int64_t end = a.G - g > 16 ? (g + 16) * a.group_size : a.K;
    __m512i dots[R][T];
    if constexpr (!Many) {
      for (; k + kCodes <= end; k += kCodes) {
        clear(dots);
        chunk(dots, true);
        add_scaled(dots);
      }
      if (k < end) {
        clear(dots);
        chunk(dots, false);
        add_scaled(dots);
        k = end;
      }
    } else {
      for (int64_t group_end = k; k < end; place = _mm512_add_epi32(place, step)) {
        group_end = min_of(end, group_end + a.group_size);
        const __m512i here = place;
        while (k < group_end) {
          const int64_t stop = min_of(group_end, k + kExact);
          clear(dots);
          for (; k + kCodes <= stop; k += kCodes) chunk(dots, true);
          if (k < stop) {
            chunk(dots, false);
            k = stop;
          }
          add_scaled(dots);
          place = here;
        }
      }
    }
  }
#pragma GCC unroll 9
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) acc[t * kBlockRows + r] = _mm512_reduce_add_ps(sums[r][t]);
}

template <int P, int T, int R, bool Many>
void dot_block_of(const LinearArgs& a, const ChunkCodes<P>& codes, const Tokens& x, int64_t n, int rows,
                  float* acc) {
  int r = 0;
  for (; r + R <= rows; r += R) dot_rows<P, T, R, Many>(a, codes, x, n + r, acc + r);
  for (; r < rows; ++r) dot_rows<P, T, 1, Many>(a, codes, x, n + r, acc + r);
}

// A block of rows.
template <int P, int T, bool Many>
void dot_block(const LinearArgs& a, const ChunkCodes<P>& codes, const Tokens& x, int64_t n, int rows,
               float* acc) {
  if constexpr (!Many && T <= 2) {
    // Short rows: what is done once for R rows shows. 576 x 576, 4 bits, one token, Zen 5, one core: 8.1 us with two
    // rows at a time, 6.9 with four; 4096 x 4096: 260 with two, 291 with four.
    if (a.row_bytes <= 1024) return dot_block_of<P, T, 4, Many>(a, codes, x, n, rows, acc);
  }
  // Two rows of more tokens than six, with sums in both int32 and float32, do not fit in 32 registers.
  dot_block_of<P, T, Many || T <= 6 ? kPair : 1, Many>(a, codes, x, n, rows, acc);
}

}  // namespace
}  // namespace ao::avx512
