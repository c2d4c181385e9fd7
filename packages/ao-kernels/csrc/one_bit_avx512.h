// 1-bit weight-only linear for one token: four codes are an index into a table of sums of four activations.
//
//   y[n] = sum_g scale[n, g] * (sum_{j in g} table_j[nibble j of row n] - (zero[n, g] - 1) * sum_{k in g} x[k]) + bias[n]
//   table_j[b] = sum_i ((b >> i & 1) - 1) * x[4 j + i], float32
//
// Unpacking codes is what bounds a dot product of 1-bit codes (4096 x 4096, Zen 5: 81e9 codes/s a core, 0.47 of the read
// bandwidth). Here 16 rows stand in the 32-bit lanes, vpermps ignores all but four bits of an index, and a shift, a
// lookup and an addition serve 64 codes.
#pragma once
#include "dot_avx512.h"

namespace ao::avx512 {

constexpr int kTableRows = 32;   // rows that share the loads of tables
constexpr int kWordCodes = 32;   // codes of a lane
constexpr int kChunkWords = 16;  // of a row, 64 bytes, loaded and transposed together

// The row is one group, or groups begin at words.
inline bool table_fits(const LinearArgs& a) {
  return a.M == 1 && (a.G == 1 || a.group_size % kWordCodes == 0);
}

// Tables [from, to), zeros for activations past K.
inline void build_tables(const LinearArgs& a, int64_t from, int64_t to, float* tables) {
  __m512 weight[4];  // lane b: (b >> i & 1) - 1, multiplied so that 0 * inf is NaN, as it is in a product
  for (int i = 0; i < 4; ++i) {
    const __mmask16 set = static_cast<__mmask16>(i == 0 ? 0xaaaa : i == 1 ? 0xcccc : i == 2 ? 0xf0f0 : 0xff00);
    weight[i] = _mm512_mask_mov_ps(_mm512_set1_ps(-1.0f), set, _mm512_setzero_ps());
  }
  for (int64_t j = from; j < to; j += 4) {
    const __m512 x = load_16(a.x, a.x_dtype, 4 * j, static_cast<__mmask16>(low_bits(a.K - 4 * j)));
    for (int t = 0; t < 4; ++t) {
      __m512 sum = _mm512_setzero_ps();
      for (int i = 0; i < 4; ++i)
        sum = _mm512_fmadd_ps(weight[i], _mm512_permutexvar_ps(_mm512_set1_epi32(4 * t + i), x), sum);
      _mm512_store_ps(tables + (j + t) * 16, sum);
    }
  }
}

// out[g * kTableRows + r]: the scales or zero points of the block's rows; rows past the last repeat it.
inline void read_parameters(const LinearArgs& a, const void* data, int64_t n, float* out) {
  for (int64_t g = 0; g < a.G; g += 16) {
    const auto mask = static_cast<__mmask16>(low_bits(a.G - g));
    for (int half = 0; half < kTableRows; half += 16) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t row = n + half + i < a.N ? n + half + i : a.N - 1;
        r[i] = _mm512_castps_si512(load_16(data, a.scale_dtype, row * a.scale_stride + g, mask));
      }
      transpose16(r);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(out + (g + i) * kTableRows + half, r[i]);
    }
  }
}

// words[w * kTableRows + r]: word w of 64 bytes of each row of the block; bytes past the row are 0.
inline void read_words(const LinearArgs& a, int64_t n, int64_t byte, uint32_t* words) {
  const __mmask64 mask = low_bits(a.row_bytes - byte);
  for (int half = 0; half < kTableRows; half += 16) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t row = n + half + i < a.N ? n + half + i : a.N - 1;
      r[i] = _mm512_maskz_loadu_epi8(mask, a.codes + row * a.row_bytes + byte);
    }
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(words + i * kTableRows + half, r[i]);
  }
}

// Rows [n, n + kTableRows).
inline void table_block(const LinearArgs& a, const float* tables, const float* sums, int64_t n) {
  const int64_t n_words = (a.row_bytes + 3) / 4, group_words = a.G == 1 ? n_words : a.group_size / kWordCodes;
  const int64_t n_parameters = (a.G + 15) / 16 * 16 * kTableRows;
  auto* scales = static_cast<float*>(scratch(3, 2 * n_parameters * sizeof(float)));
  float* zeros = scales + n_parameters;
  read_parameters(a, a.scale, n, scales);
  if (a.zero) read_parameters(a, a.zero, n, zeros);
  for (int half = 0; half < kTableRows; half += kRowBlock) prefetch_scales(a, n + kTableRows + half);
  alignas(64) uint32_t words[kChunkWords * kTableRows];
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512 part[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, other[2] = {part[0], part[1]};
  int64_t g = 0, group_end = group_words;
  for (int64_t begin = 0; begin < n_words; begin += kChunkWords) {
    read_words(a, n, 4 * begin, words);
    // The next block, in the order of its bytes.
    const uint8_t* next = a.codes + (n + kTableRows) * a.row_bytes + begin * 4 * kTableRows;
    const int64_t end = begin + kChunkWords < n_words ? begin + kChunkWords : n_words;
    for (int64_t w = begin; w < end; ++w, next += 128) {
      _mm_prefetch(next, _MM_HINT_T0);
      _mm_prefetch(next + 64, _MM_HINT_T0);
      __m512i index[2] = {_mm512_load_si512(words + (w - begin) * kTableRows),
                          _mm512_load_si512(words + (w - begin) * kTableRows + 16)};
#pragma GCC unroll 4
      for (int nibble = 0; nibble < 8; nibble += 2) {
        const float* table = tables + (8 * w + nibble) * 16;
        const __m512 even = _mm512_load_ps(table), odd = _mm512_load_ps(table + 16);
        for (int h = 0; h < 2; ++h) {
          part[h] = _mm512_add_ps(part[h], _mm512_permutexvar_ps(index[h], even));
          index[h] = _mm512_srli_epi32(index[h], 4);
          other[h] = _mm512_add_ps(other[h], _mm512_permutexvar_ps(index[h], odd));
          index[h] = _mm512_srli_epi32(index[h], 4);
        }
      }
      if (w + 1 < group_end && w + 1 < n_words) continue;
      for (int h = 0; h < 2; ++h) {
        const int64_t at = g * kTableRows + 16 * h;
        __m512 sum = _mm512_add_ps(part[h], other[h]);
        if (a.zero) {
          const __m512 zero = _mm512_sub_ps(_mm512_load_ps(zeros + at), _mm512_set1_ps(1.0f));
          sum = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[g]), sum);
        }
        total[h] = _mm512_fmadd_ps(_mm512_load_ps(scales + at), sum, total[h]);
        part[h] = other[h] = _mm512_setzero_ps();
      }
      ++g;
      group_end += group_words;
    }
  }
  for (int h = 0; h < 2; ++h) {
    const auto mask = static_cast<__mmask16>(low_bits(a.N - n - 16 * h));
    const __m512 bias = a.bias ? load_16(a.bias, a.bias_dtype, n + 16 * h, mask) : _mm512_setzero_ps();
    store_16(a.y, a.x_dtype, n + 16 * h, mask, _mm512_add_ps(total[h], bias));
  }
}

inline void table_linear(const LinearArgs& a) {
  const int64_t n_tables = (a.row_bytes + 3) / 4 * 8;
  auto* tables = static_cast<float*>(scratch(0, n_tables * 16 * sizeof(float)));
  const int64_t grain = (n_tables / (4 * a.n_threads) + 256) / 4 * 4;
  parallel_for(n_tables, grain, n_tables < 4096 ? 1 : a.n_threads,
               [&](int64_t from, int64_t to) { build_tables(a, from, to, tables); });
  float* sums = nullptr;
  if (a.zero) {
    sums = static_cast<float*>(scratch(1, a.G * sizeof(float)));
    sum_groups(a, 0, sums);
  }
  const int64_t n_blocks = (a.N + kTableRows - 1) / kTableRows;
  parallel_for(n_blocks, row_grain(a) / kTableRows + 1, row_threads(a), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) table_block(a, tables, sums, block * kTableRows);
  });
}

}  // namespace ao::avx512
