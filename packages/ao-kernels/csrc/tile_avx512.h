// Weight-only linear for many tokens: tiles of 32 weight rows x 12 tokens.
//
// For 32 rows and 256 codes at a time the codes are unpacked to bf16 and transposed, so that a register holds one pair of
// codes of 16 rows; a token's pair of activations is broadcast from memory. The tile lives in 24 registers while it
// runs through the codes of a group, then joins the float32 sums, multiplied by the 32 scales of the group.
// The unpacked codes (16 KB) and activations (6 KB) stay in the first-level cache.
#pragma once
#include "dot_avx512.h"

namespace ao::avx512 {

constexpr int kTileRows = 32;
constexpr int kTileTokens = 12;
constexpr int kBlockCodes = 256;
constexpr int kBlockPairs = kBlockCodes / 2;

// One chunk of 16 rows -> out[pair position][row], rows 32 apart.
template <int B>
void unpack_rows(const uint8_t* const rows[16], int64_t offset, int64_t bytes, uint32_t* out) {
  const bool full = bytes >= chunk_bytes<B>;
  const ChunkMask mask = chunk_mask(bytes);
  if constexpr (B == 4) {  // transposing before the look-up moves a quarter of the bytes
    __m512i r[16];
    for (int j = 0; j < 16; ++j) r[j] = _mm512_maskz_loadu_epi8(mask.first, rows[j] + offset);
    transpose16(r);
    const __m512i table = _mm512_load_si512(kCodeTables<4>.values[0]);
    for (int i = 0; i < 16; ++i)
      for (int s = 0; s < 4; ++s)
        _mm512_store_si512(out + pair_position<B>(s, i) * kTileRows,
                           _mm512_permutexvar_epi16(_mm512_srli_epi16(r[i], 4 * s), table));
    return;
  }
  alignas(64) __m512i w[16][4];
  for (int j = 0; j < 16; ++j) {
    if (full) Codes<B>::template unpack<true>(rows[j] + offset, {}, w[j]);
    else Codes<B>::template unpack<false>(rows[j] + offset, mask, w[j]);
  }
  for (int s = 0; s < 4; ++s) {
    __m512i r[16];
    for (int j = 0; j < 16; ++j) r[j] = w[j][s];
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + pair_position<B>(s, i) * kTileRows, r[i]);
  }
}

// Bytes that a pair of codes after another asks for: the next tile's, in the order of memory, while this one is multiplied.
// The tile itself reads short pieces of many rows, which no prefetcher follows, and a burst of prefetches
// is dropped by the processor.
struct Ahead {
  const uint8_t* bytes;
  int64_t step;
};

// sums[t][32] += scales[32] * (codes of n_pairs pairs . activations of T tokens)
template <int T>
void tile_group(const uint32_t* codes, const uint16_t* x, int64_t x_stride, int n_pairs,
                const float* scales, float* sums, Ahead ahead) {
  __m512 low[T], high[T];
  for (int t = 0; t < T; ++t) low[t] = high[t] = _mm512_setzero_ps();
  for (int i = 0; i < n_pairs; ++i) {
    const __m512i w0 = _mm512_load_si512(codes + i * kTileRows);
    const __m512i w1 = _mm512_load_si512(codes + i * kTileRows + 16);
    _mm_prefetch(ahead.bytes + i * ahead.step, _MM_HINT_T1);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      int32_t pair;
      __builtin_memcpy(&pair, x + t * x_stride + 2 * i, 4);
      const __m512i activations = _mm512_set1_epi32(pair);
      low[t] = dot(low[t], w0, activations);
      high[t] = dot(high[t], w1, activations);
    }
  }
  const __m512 s0 = _mm512_loadu_ps(scales), s1 = _mm512_loadu_ps(scales + 16);
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
    float* at = sums + t * kTileRows;
    _mm512_store_ps(at, _mm512_fmadd_ps(low[t], s0, _mm512_load_ps(at)));
    _mm512_store_ps(at + 16, _mm512_fmadd_ps(high[t], s1, _mm512_load_ps(at + 16)));
  }
}

using TileGroup = void (*)(const uint32_t*, const uint16_t*, int64_t, int, const float*, float*, Ahead);
inline constexpr TileGroup kTileGroups[kTileTokens + 1] = {
    nullptr,       tile_group<1>, tile_group<2>, tile_group<3>,  tile_group<4>,
    tile_group<5>, tile_group<6>, tile_group<7>, tile_group<8>,  tile_group<9>,
    tile_group<10>, tile_group<11>, tile_group<12>};

// What is fixed for 32 weight rows: their addresses, scales and zero points by group.
struct RowTile {
  const uint8_t* rows[kTileRows];
  float* scales;       // [G][32]
  float* corrections;  // [G][32] scale * (zero - middle), or nullptr
  int n_rows;
};

template <int B>
RowTile read_row_tile(const LinearArgs& a, int64_t begin, float* memory) {
  RowTile tile;
  tile.n_rows = static_cast<int>(a.N - begin < kTileRows ? a.N - begin : kTileRows);
  tile.scales = memory;
  tile.corrections = a.zero ? memory + a.G * kTileRows : nullptr;
  constexpr float middle = B == 0 ? 0.0f : static_cast<float>(1 << (B - 1 > 0 ? B - 1 : 0));
  for (int j = 0; j < kTileRows; ++j) {
    // Rows behind the last repeat it; their sums are not stored.
    const int64_t n = begin + (j < tile.n_rows ? j : tile.n_rows - 1);
    tile.rows[j] = a.codes + n * a.row_bytes;
    for (int64_t g = 0; g < a.G; g += 16) {
      const int count = static_cast<int>(a.G - g < 16 ? a.G - g : 16);
      const auto mask = static_cast<__mmask16>(low_bits(count));
      alignas(64) float some[16];
      const __m512 scale = load_16(a.scale, a.scale_dtype, n * a.scale_stride + g, mask);
      _mm512_store_ps(some, scale);
      for (int i = 0; i < count; ++i) tile.scales[(g + i) * kTileRows + j] = some[i];
      if (!tile.corrections) continue;
      const __m512 zero = load_16(a.zero, a.scale_dtype, n * a.scale_stride + g, mask);
      _mm512_store_ps(some, _mm512_mul_ps(scale, _mm512_sub_ps(zero, _mm512_set1_ps(middle))));
      for (int i = 0; i < count; ++i) tile.corrections[(g + i) * kTileRows + j] = some[i];
    }
  }
  return tile;
}

inline void start_sums(const LinearArgs& a, const Activations& x, const RowTile& tile, int64_t begin,
                       float* sums) {
  alignas(64) float bias[kTileRows] = {};
  if (a.bias)
    for (int j = 0; j < tile.n_rows; ++j) bias[j] = load_f32(a.bias, a.bias_dtype, begin + j);
  for (int64_t m = 0; m < x.rows; ++m) {
    __m512 low = _mm512_load_ps(bias), high = _mm512_load_ps(bias + 16);
    if (tile.corrections)
      for (int64_t g = 0; g < a.G; ++g) {
        const __m512 sum = _mm512_set1_ps(x.sums[m * a.G + g]);
        low = _mm512_fnmadd_ps(_mm512_loadu_ps(tile.corrections + g * kTileRows), sum, low);
        high = _mm512_fnmadd_ps(_mm512_loadu_ps(tile.corrections + g * kTileRows + 16), sum, high);
      }
    _mm512_store_ps(sums + m * kTileRows, low);
    _mm512_store_ps(sums + m * kTileRows + 16, high);
  }
}

// All tokens of x (from token m_begin of the call) times weight rows [begin, begin + 32).
template <int B>
void tile_rows(const LinearArgs& a, const Activations& x, int64_t m_begin, int64_t begin) {
  auto* codes = static_cast<uint32_t*>(scratch(3, kBlockPairs * kTileRows * sizeof(uint32_t)));
  auto* sums = static_cast<float*>(scratch(4, x.rows * kTileRows * sizeof(float)));
  const int64_t n_parameters = a.G * kTileRows * (a.zero ? 2 : 1);
  const RowTile tile = read_row_tile<B>(a, begin, static_cast<float*>(scratch(5, n_parameters * sizeof(float))));
  start_sums(a, x, tile, begin, sums);

  const int64_t n_blocks = (x.rows + kTileTokens - 1) / kTileTokens;
  const int64_t bytes = kTileRows * a.row_bytes;
  const bool has_next = begin + 2 * kTileRows <= a.N;
  const int64_t x_stride = x.planes * kBlockCodes;
  for (int64_t k = 0; k < a.K; k += kBlockCodes) {
    const int64_t k_end = k + kBlockCodes < a.K ? k + kBlockCodes : a.K;
    for (int64_t c = k / kChunk; c * kChunk < k_end; ++c)
      for (int half = 0; half < 2; ++half)
        unpack_rows<B>(tile.rows + 16 * half, c * chunk_bytes<B>, a.row_bytes - c * chunk_bytes<B>,
                       codes + (c * kChunk - k) / 2 * kTileRows + 16 * half);
    for (int64_t block = 0; block < n_blocks; ++block) {
      const int64_t m = x.rows * block / n_blocks;
      const auto tokens = static_cast<int>(x.rows * (block + 1) / n_blocks - m);
      for (int plane = 0; plane < x.planes; ++plane) {
        const uint16_t* activations = x.at(m, plane, k);
        for (int64_t from = k; from < k_end;) {
          const int64_t g = from / a.group_size;
          const int64_t to = (g + 1) * a.group_size < k_end ? (g + 1) * a.group_size : k_end;
          const bool asks = block == 0 && plane == 0 && has_next;
          const Ahead ahead = {asks ? tile.rows[0] + bytes + bytes * from / a.K : tile.rows[0],
                               asks ? 2 * bytes / a.K : 0};
          const int64_t first = from - k, n_codes = (to - from + 7) / 8 * 8;
          kTileGroups[tokens](codes + first / 2 * kTileRows, activations + first, x_stride,
                              static_cast<int>(n_codes / 2), tile.scales + g * kTileRows,
                              sums + m * kTileRows, ahead);
          from = to;
        }
      }
    }
  }
  for (int64_t m = 0; m < x.rows; ++m)
    for (int half = 0; half < 2; ++half)
      store_16(a.y, a.x_dtype, (m_begin + m) * a.N + begin + 16 * half,
               static_cast<__mmask16>(low_bits(tile.n_rows - 16 * half)),
               _mm512_load_ps(sums + m * kTileRows + 16 * half));
}

}  // namespace ao::avx512
