// Weight-only linear for many tokens: tiles of 32 weight rows x 12 tokens.
//
// For 32 rows and 128 codes at a time the codes are unpacked to bf16 and transposed, so that a register holds one pair of
// codes of 16 rows; a token's pair of activations is broadcast from memory. The tile lives in 24 registers while it
// runs through the codes of a group, then joins the float32 sums, multiplied by the 32 scales of the group.
// Up to four tiles of rows go together: their unpacked codes (32 KB) and a tile's activations (3 KB) stay in the first-level
// cache, and activations are brought to it once for 128 rows.
#pragma once
#include "dot_avx512.h"

namespace ao::avx512 {

constexpr int kTileRows = 32;
constexpr int kTileTokens = 12;
constexpr int kTilesTogether = 4;
constexpr int kChunkPairs = kChunk / 2;

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

// A tile reads short pieces of many rows, which no prefetcher follows, and a burst of prefetches is dropped by the processor.
// So every pair of codes of the first tokens asks for some bytes of the next tiles, in the order of addresses, and every tile
// asks for some rows of the next chunk, which may have left the second-level cache since.
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
    _mm_prefetch(ahead.bytes + i * ahead.step, _MM_HINT_T0);
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
  // Rows behind the last repeat it; their sums are not stored.
  const auto row = [&](int j) { return begin + (j < tile.n_rows ? j : tile.n_rows - 1); };
  for (int j = 0; j < kTileRows; ++j) tile.rows[j] = a.codes + row(j) * a.row_bytes;
  for (int half = 0; half < kTileRows; half += 16)
    for (int64_t g = 0; g < a.G; g += 16) {
      const int count = static_cast<int>(a.G - g < 16 ? a.G - g : 16);
      const auto mask = static_cast<__mmask16>(low_bits(count));
      __m512i scales[16], shifts[16];
      for (int j = 0; j < 16; ++j) {
        const int64_t at = row(half + j) * a.scale_stride + g;
        const __m512 scale = load_16(a.scale, a.scale_dtype, at, mask);
        scales[j] = _mm512_castps_si512(scale);
        if (a.zero)
          shifts[j] = _mm512_castps_si512(_mm512_mul_ps(
              scale, _mm512_sub_ps(load_16(a.zero, a.scale_dtype, at, mask), _mm512_set1_ps(middle))));
      }
      const auto store = [&](__m512i parameters[16], float* out) {
        transpose16(parameters);
        for (int i = 0; i < count; ++i) _mm512_storeu_si512(out + (g + i) * kTileRows + half, parameters[i]);
      };
      store(scales, tile.scales);
      if (a.zero) store(shifts, tile.corrections);
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

// The part of a chunk that lies in one group.
struct Piece {
  int first_pair, n_pairs;
  int64_t group;
};

inline int cut_chunk(const LinearArgs& a, int64_t c, Piece pieces[kChunk / 8]) {
  const int64_t begin = c * kChunk, end = begin + kChunk < a.K ? begin + kChunk : a.K;
  int n = 0;
  for (int64_t from = begin; from < end; ++n) {
    const int64_t g = from / a.group_size;
    const int64_t to = (g + 1) * a.group_size < end ? (g + 1) * a.group_size : end;
    pieces[n] = {static_cast<int>((from - begin) / 2), static_cast<int>((to - from + 7) / 8 * 4), g};
    from = to;
  }
  return n;
}

// All tokens of x (from token m_begin of the call) times `count` tiles of weight rows, at most kTilesTogether. The
// thread's next tiles most likely begin at tile `after`.
template <int B>
void multiply_tiles(const LinearArgs& a, const Activations& x, int64_t m_begin, int64_t first_tile, int count,
                    int64_t after) {
  constexpr int64_t kTileCodes = kChunkPairs * kTileRows;
  const int64_t n_sums = x.rows * kTileRows, n_parameters = a.G * kTileRows * (a.zero ? 2 : 1);
  auto* codes = static_cast<uint32_t*>(scratch(3, count * kTileCodes * sizeof(uint32_t)));
  auto* sums = static_cast<float*>(scratch(4, count * n_sums * sizeof(float)));
  auto* parameters = static_cast<float*>(scratch(5, count * n_parameters * sizeof(float)));
  RowTile tiles[kTilesTogether];
  for (int i = 0; i < count; ++i) {
    const int64_t begin = (first_tile + i) * kTileRows;
    tiles[i] = read_row_tile<B>(a, begin, parameters + i * n_parameters);
    start_sums(a, x, tiles[i], begin, sums + i * n_sums);
  }

  const int64_t n_blocks = (x.rows + kTileTokens - 1) / kTileTokens;
  const int64_t x_stride = x.planes * kChunk;
  // Bytes of the next tiles that a pair of codes asks for, and how far that has come.
  const bool goes_on = (after + count) * kTileRows <= a.N;
  const int64_t step = goes_on ? 2 * kTileRows * a.row_bytes / a.K : 0;
  const uint8_t* next = goes_on ? a.codes + after * kTileRows * a.row_bytes : a.codes;
  const int64_t n_calls = n_blocks * x.planes * count;
  const int n_asked = static_cast<int>((kTileRows * count + n_calls - 1) / n_calls);
  for (int64_t c = 0; c < x.n_chunks; ++c) {
    const int64_t at = c * chunk_bytes<B>;
    for (int i = 0; i < count; ++i)
      for (int half = 0; half < 2; ++half)
        unpack_rows<B>(tiles[i].rows + 16 * half, at, a.row_bytes - at, codes + i * kTileCodes + 16 * half);
    Piece pieces[kChunk / 8];
    const int n_pieces = cut_chunk(a, c, pieces);
    int asked = c + 1 < x.n_chunks ? 0 : kTileRows * count;
    for (int64_t block = 0; block < n_blocks; ++block) {
      const int64_t m = x.rows * block / n_blocks, m_end = x.rows * (block + 1) / n_blocks;
      const TileGroup multiply = kTileGroups[m_end - m];
      // The first tokens ask for the next tiles, others for the activations that follow.
      Ahead ahead = {next, step};
      if (block > 0) ahead = {reinterpret_cast<const uint8_t*>(x.at(m_end, 0, c)), 4 * kTileTokens / count};
      for (int plane = 0; plane < x.planes; ++plane) {
        const uint16_t* activations = x.at(m, plane, c);
        for (int i = 0; i < count; ++i) {
          for (int last = asked + n_asked; asked < last && asked < kTileRows * count; ++asked)
            for (int line = 0; line < chunk_bytes<B>; line += 64)
              _mm_prefetch(tiles[asked / kTileRows].rows[asked % kTileRows] + at + chunk_bytes<B> + line, _MM_HINT_T1);
          for (int j = 0; j < n_pieces; ++j) {
            const Piece piece = pieces[j];
            multiply(codes + i * kTileCodes + piece.first_pair * kTileRows, activations + 2 * piece.first_pair, x_stride,
                     piece.n_pairs, tiles[i].scales + piece.group * kTileRows, sums + i * n_sums + m * kTileRows, ahead);
            ahead.bytes += piece.n_pairs * ahead.step;
          }
        }
      }
      if (block == 0) next = ahead.bytes;
    }
  }
  for (int64_t m = 0; m < x.rows; ++m)
    for (int i = 0; i < 2 * count; ++i)
      store_16(a.y, a.x_dtype, (m_begin + m) * a.N + first_tile * kTileRows + 16 * i,
               static_cast<__mmask16>(low_bits(tiles[i / 2].n_rows - i % 2 * 16)),
               _mm512_load_ps(sums + i / 2 * n_sums + m * kTileRows + i % 2 * 16));
}

}  // namespace ao::avx512
