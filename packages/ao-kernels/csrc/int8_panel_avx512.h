// More than a few tokens: a block of rows is brought, kDepth codes at a time, into a panel in which the 32-bit lane n of a
// step holds four consecutive codes of row n; tiles of kBlockRows rows and up to kTile tokens then run over the panel.
// The panel is scratch of one block: no packed copy of the weight is kept.
#pragma once
#include "int8_codes_avx512.h"
#include "scratch.h"

namespace ao::avx512 {
namespace {

constexpr int64_t kDepth = 512;      // codes of a panel: 16 KiB, a third of the first-level cache
constexpr int kMaxPieces = 64;       // segments of a panel: groups of 8
constexpr int kTile = 6;             // tokens of a tile: 2 * 6 sums in int32, as many in float32
constexpr int kStepBytes = 4 * kBlockRows;

// A segment in a panel.
struct Piece {
  int first_step, steps, group;  // all counted from the beginning of the panel
  bool opens_group;
};

// The segments of one panel: codes [k0, k1), groups [g0, g1).
struct Stretch {
  int64_t first_segment, k0, k1, g0, g1;
  int n_pieces;
  Piece pieces[kMaxPieces];
};

struct Stretches {
  int64_t count, n_segments;
  const Stretch* list;
};

struct Panel {
  alignas(64) uint8_t codes[kBlockRows * (kDepth + 512)];  // the last chunk may go beyond kDepth
  alignas(64) float scale[kMaxPieces * kBlockRows];
  alignas(64) float shift[kMaxPieces * kBlockRows];        // (zero - middle) * scale
};

// In scratch slot 1 of the caller; the same for every block, and too many divisions to repeat for each.
inline Stretches plan_stretches(const Segments& segments, int planes) {
  // A stretch that is followed by another, and the first segment of that one, are more than kDepth codes or
  // kMaxPieces segments.
  const int64_t most = 2 * (segments.K / kDepth + segments.count / kMaxPieces) + 2;
  auto* const list = static_cast<Stretch*>(scratch(1, static_cast<size_t>(most) * sizeof(Stretch)));
  int64_t n = 0, s = 0;
  for (; s < segments.count; ++n) {
    Stretch& out = list[n];
    out.first_segment = s;
    out.k0 = segments.begin(s);
    out.g0 = segments.group(s);
    out.n_pieces = 0;
    for (; s < segments.count && out.n_pieces < kMaxPieces && segments.end(s) - out.k0 <= kDepth; ++s) {
      const int64_t begin = segments.begin(s);
      out.k1 = segments.end(s);
      out.g1 = segments.group(s) + 1;
      out.pieces[out.n_pieces++] = {static_cast<int>(begin - out.k0) / 4,
                                    static_cast<int>(round_up(out.k1 - begin, 4 * planes)) / 4,
                                    static_cast<int>(segments.group(s) - out.g0), segments.opens_group(s)};
    }
  }
  return {n, segments.count, list};
}

// Brings a range of memory to the second-level cache in about equal steps.
class Prefetch {
 public:
  Prefetch(const void* begin, int64_t bytes, int64_t steps)
      : at_(static_cast<const char*>(begin)), bytes_(bytes), per_step_(bytes / steps + 1) {}
  void step() {
    until_ = min_of(bytes_, until_ + per_step_);
    for (; done_ < until_; done_ += 64) _mm_prefetch(at_ + done_, _MM_HINT_T1);
  }

 private:
  const char* at_;
  int64_t bytes_, per_step_, until_ = 0, done_ = 0;
};

// Codes [k0, k1) of `rows` rows from row n on; missing rows are zeros.
template <int P>
void pack_codes(const LinearArgs& a, const ChunkCodes<P>& codes, int64_t n, int rows, int64_t k0,
                int64_t k1, uint8_t* panel) {
  constexpr int kRegisters = ChunkCodes<P>::kRegisters, kCodes = ChunkCodes<P>::kCodes;
  for (int half = 0; half < kBlockRows; half += 16) {
    const int valid = rows - half < 16 ? rows - half : 16;
    const uint8_t* const base = a.codes + (n + half) * a.row_bytes;
    for (int64_t k = k0; k < k1; k += kCodes) {
      const int64_t at = k / 8 * code_bits(a), left = a.row_bytes - at;
      uint8_t* const out = panel + (k - k0) * kBlockRows + 4 * half;

      __m512i v[16];
      if (valid == 16 && left >= codes.bytes) {
        for (int i = 0; i < 16; ++i) v[i] = codes.load(base + i * a.row_bytes + at);
      } else {
        for (int i = 0; i < 16; ++i)
          v[i] = i < valid ? codes.load(base + i * a.row_bytes + at, left) : _mm512_setzero_si512();
      }
      if (P == 0)
        for (int i = 0; i < 16; ++i) v[i] = codes.plane(v[i], 0);
      transpose16(v);
      for (int i = 0; i < 16; ++i)
        for (int p = 0; p < kRegisters; ++p)
          _mm512_store_si512(out + (i * kRegisters + p) * kStepBytes, P == 0 ? v[i] : codes.plane(v[i], p));
    }
  }
}

// (rows, groups g0 .. g1) -> out[group][row]
inline void pack_scales(const void* scale, const LinearArgs& a, int64_t n, int rows, int64_t g0, int64_t g1,
                        float* out) {
  for (int half = 0; half < kBlockRows; half += 16)
    for (int64_t g = g0; g < g1; g += 16) {
      const int width = g1 - g < 16 ? static_cast<int>(g1 - g) : 16;
      const __mmask16 mask = static_cast<__mmask16>((1u << width) - 1);
      __m512i v[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t row = half + i < rows ? n + half + i : n;
        v[i] = _mm512_castps_si512(load_16(scale, a.scale_dtype, row * a.scale_stride + g, mask));
      }
      transpose16(v);
      for (int i = 0; i < width; ++i) _mm512_store_si512(out + (g - g0 + i) * kBlockRows + half, v[i]);
    }
}

// Not _mm512_set1_epi32: gcc would load once for two registers that start alike, keep a third, and then spill.
inline __m512i broadcast(const int32_t& value) {
  __m512i lanes;
  asm volatile("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(value));
  return lanes;
}

// acc[t][r] += the panel times T tokens from t0 on.
template <int T, bool Zeros>
void multiply_tile(const Panel& panel, const Stretch& stretch, int64_t n_segments, const Tokens& x, int64_t t0,
                   float* acc) {
  const int8_t* const token = x.codes + t0 * x.stride + stretch.k0;
  const int32_t* const starts = x.segment_sums + t0 * n_segments + stretch.first_segment;
  __m512 sums[T][2];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    sums[t][0] = _mm512_load_ps(acc + t * kBlockRows);
    sums[t][1] = _mm512_load_ps(acc + t * kBlockRows + 16);
  }
  for (int s = 0; s < stretch.n_pieces; ++s) {
    const Piece& piece = stretch.pieces[s];
    const uint8_t* codes = panel.codes + piece.first_step * kStepBytes;
    const int8_t* q = token + 4 * piece.first_step;
    __m512i dots[T][2];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      dots[t][0] = broadcast(starts[t * n_segments + s]);
      dots[t][1] = broadcast(starts[t * n_segments + s]);
    }
    for (int i = 0; i < piece.steps; ++i, codes += kStepBytes, q += 4) {
      const __m512i low = _mm512_load_si512(codes), high = _mm512_load_si512(codes + 64);
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        int32_t four;
        std::memcpy(&four, q + t * x.stride, 4);
        const __m512i each = _mm512_set1_epi32(four);
        dots[t][0] = dot4(dots[t][0], low, each);
        dots[t][1] = dot4(dots[t][1], high, each);
      }
    }
    const float* const scale = panel.scale + piece.group * kBlockRows;
    const __m512 scale_low = _mm512_load_ps(scale), scale_high = _mm512_load_ps(scale + 16);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      sums[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][0]), scale_low, sums[t][0]);
      sums[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][1]), scale_high, sums[t][1]);
    }
    if (Zeros && piece.opens_group) {
      const float* const shift = panel.shift + piece.group * kBlockRows;
      const __m512 shift_low = _mm512_load_ps(shift), shift_high = _mm512_load_ps(shift + 16);
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m512 q_sum = _mm512_set1_ps(x.group_sums[(t0 + t) * x.n_sums + stretch.g0 + piece.group]);
        sums[t][0] = _mm512_fnmadd_ps(q_sum, shift_low, sums[t][0]);
        sums[t][1] = _mm512_fnmadd_ps(q_sum, shift_high, sums[t][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    _mm512_store_ps(acc + t * kBlockRows, sums[t][0]);
    _mm512_store_ps(acc + t * kBlockRows + 16, sums[t][1]);
  }
}

using MultiplyTile = void(const Panel&, const Stretch&, int64_t, const Tokens&, int64_t, float*);
template <bool Zeros>
inline constexpr MultiplyTile* kMultiplyTile[kTile + 1] = {
    nullptr,
    multiply_tile<1, Zeros>, multiply_tile<2, Zeros>, multiply_tile<3, Zeros>,
    multiply_tile<4, Zeros>, multiply_tile<5, Zeros>, multiply_tile<6, Zeros>,
};

// acc[t][r] = sum of (c - zero) * scale * q for the rows from n on and all tokens; `next` is the row from which the next
// block of this thread will start.
template <int P>
void panel_block(const LinearArgs& a, const ChunkCodes<P>& codes, const Tokens& x, const Stretches& stretches,
                 int64_t n, int rows, int64_t next, Panel& panel, float* acc) {
  const int64_t tiles = (x.count + kTile - 1) / kTile;
  const int64_t next_rows = max_of(0, min_of(kBlockRows, a.N - next));
  const int64_t scale_bytes = a.scale_stride * dtype_bytes(a.scale_dtype);
  const int64_t steps = tiles * stretches.count;
  Prefetch next_codes(a.codes + next * a.row_bytes, next_rows * a.row_bytes, steps);
  Prefetch next_scales(static_cast<const char*>(a.scale) + next * scale_bytes, next_rows * scale_bytes, steps);
  const float middle_code = static_cast<float>(middle(a));
  std::memset(acc, 0, static_cast<size_t>(x.count) * kBlockRows * sizeof(float));
  for (int64_t i = 0; i < stretches.count; ++i) {
    const Stretch& here = stretches.list[i];
    pack_codes(a, codes, n, rows, here.k0, here.k1, panel.codes);
    pack_scales(a.scale, a, n, rows, here.g0, here.g1, panel.scale);
    if (a.zero) {
      pack_scales(a.zero, a, n, rows, here.g0, here.g1, panel.shift);
      for (int64_t j = 0; j < (here.g1 - here.g0) * kBlockRows; ++j)
        panel.shift[j] = (panel.shift[j] - middle_code) * panel.scale[j];
    }
    for (int64_t tile = 0, t = 0; tile < tiles; ++tile) {
      next_codes.step();
      next_scales.step();
      const int64_t end = x.count * (tile + 1) / tiles;
      const auto multiply = a.zero ? kMultiplyTile<true>[end - t] : kMultiplyTile<false>[end - t];
      multiply(panel, here, stretches.n_segments, x, t, acc + t * kBlockRows);
      t = end;
    }
  }
}

}  // namespace
}  // namespace ao::avx512
