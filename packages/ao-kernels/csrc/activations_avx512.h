// Activations for the AVX-512 linear kernels: as bf16, in the order in which codes unpack, once a call.
//
// bf16 is taken as it is. f16 becomes two bf16 whose sum is exact, f32 three ("planes"): each plane is the truncated
// rest of the one before, so that nothing overflows and nothing is lost.
#pragma once
#include "codes_avx512.h"
#include "linear.h"
#include "parallel.h"
#include "scratch.h"

namespace ao::avx512 {

inline int n_planes(DType dtype) { return dtype == DType::bf16 ? 1 : dtype == DType::f16 ? 2 : 3; }

// Order in which a chunk's activations are stored: element e of the chunk is x[order.code[e]].
struct Order {
  alignas(64) uint16_t code[kChunk];
};

// Dot products read whole registers: step s, lane j at 32 s + j.
template <int B>
inline constexpr Order kDotOrder = [] {
  Order order{};
  for (int s = 0; s < 4; ++s)
    for (int j = 0; j < 32; ++j) order.code[32 * s + j] = static_cast<uint16_t>(code_at<B>(s, j));
  return order;
}();

// Where the pair in 32-bit lane i of step s stands when pairs are sorted by runs of eight codes, four pairs a run:
// a group is then a contiguous piece. Tiles read activations and codes in this order.
template <int B>
constexpr int pair_position(int s, int i) {
  const int run = code_at<B>(s, 2 * i) / 8;
  const int rank = B == 0 || B == 8 ? i % 4 : B >= 5 ? 2 * (i % 2) + s % 2 : s;
  return 4 * run + rank;
}

template <int B>
inline constexpr Order kTileOrder = [] {
  Order order{};
  for (int s = 0; s < 4; ++s)
    for (int i = 0; i < 16; ++i)
      for (int h = 0; h < 2; ++h)
        order.code[2 * pair_position<B>(s, i) + h] = static_cast<uint16_t>(code_at<B>(s, 2 * i + h));
  return order;
}();

// A pass of dot products may read this many vectors behind the last; their numbers are dropped.
constexpr int kSpareVectors = 8;

struct Activations {
  uint16_t* data;   // [chunks][rows][planes][kChunk] bf16, then kSpareVectors x kChunk
  float* sums;      // [rows][G] sum of a group's activations, or nullptr without zero points
  int64_t rows, n_chunks;
  int planes;

  uint16_t* at(int64_t row, int plane, int64_t chunk) const {
    return data + ((chunk * rows + row) * planes + plane) * kChunk;
  }
};

inline __m512i narrow(__m512 low, __m512 high) {
  return _mm512_permutex2var_epi16(_mm512_castps_si512(low), _mm512_load_si512(kCodeTables<0>.upper),
                                   _mm512_castps_si512(high));
}

// The leading bf16 of v by truncation; v becomes the exact rest (0 where v is not finite).
inline __m512 split(__m512& v) {
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  __m512 lead = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0xffff0000)));
  lead = _mm512_mask_mov_ps(lead, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
  const __mmask16 infinite = _mm512_fpclass_ps_mask(v, 0x99);  // quiet or signalling NaN, +inf, -inf
  v = _mm512_maskz_sub_ps(static_cast<__mmask16>(~infinite), v, lead);
  return lead;
}

inline void store_ordered(uint16_t* out, const Order& order, const __m512i natural[4]) {
  for (int s = 0; s < 4; ++s) {
    const __m512i idx = _mm512_load_si512(order.code + 32 * s);
    const __m512i low = _mm512_permutex2var_epi16(natural[0], idx, natural[1]);
    const __m512i high = _mm512_permutex2var_epi16(natural[2], idx, natural[3]);
    const __mmask32 upper = _mm512_test_epi16_mask(idx, _mm512_set1_epi16(64));
    _mm512_store_si512(out + 32 * s, _mm512_mask_blend_epi16(upper, low, high));
  }
}

inline void pack_row(const LinearArgs& a, const Activations& out, const Order& order, int64_t m,
                     int64_t row) {
  const int64_t base = m * a.x_stride;
  for (int64_t c = 0; c < out.n_chunks; ++c) {
    const int64_t k = c * kChunk, left = a.K - k;
    __m512i natural[4];
    if (out.planes == 1) {
      const uint16_t* x = static_cast<const uint16_t*>(a.x) + base + k;
      for (int s = 0; s < 4; ++s)
        natural[s] = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(low_bits(left - 32 * s)), x + 32 * s);
      store_ordered(out.at(row, 0, c), order, natural);
      continue;
    }
    __m512 rest[8];
    for (int i = 0; i < 8; ++i)
      rest[i] = load_16(a.x, a.x_dtype, base + k + 16 * i, static_cast<__mmask16>(low_bits(left - 16 * i)));
    for (int plane = 0; plane < out.planes; ++plane) {
      for (int s = 0; s < 4; ++s) {
        const __m512 low = split(rest[2 * s]);
        natural[s] = narrow(low, split(rest[2 * s + 1]));
      }
      store_ordered(out.at(row, plane, c), order, natural);
    }
  }
}

inline void sum_groups(const LinearArgs& a, int64_t m, float* sums) {
  for (int64_t g = 0; g < a.G; ++g) {
    const int64_t end = (g + 1) * a.group_size < a.K ? (g + 1) * a.group_size : a.K;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = g * a.group_size; k < end; k += 16)
      sum = _mm512_add_ps(sum, load_16(a.x, a.x_dtype, m * a.x_stride + k,
                                      static_cast<__mmask16>(low_bits(end - k))));
    sums[g] = _mm512_reduce_add_ps(sum);
  }
}

constexpr int64_t kAlonePacked = 1 << 15;  // fewer activations are packed by the caller alone

// Rows [begin, end) of x, in scratch slots 0 and 1 of the calling thread.
inline Activations pack_activations(const LinearArgs& a, const Order& order, int64_t begin, int64_t end) {
  Activations out;
  out.rows = end - begin;
  out.n_chunks = (a.K + kChunk - 1) / kChunk;
  out.planes = n_planes(a.x_dtype);
  out.data = static_cast<uint16_t*>(scratch(0, (out.n_chunks * out.rows * out.planes + kSpareVectors) * kChunk * 2));
  out.sums = a.zero ? static_cast<float*>(scratch(1, out.rows * a.G * sizeof(float))) : nullptr;
  const int threads = out.rows * a.K < kAlonePacked ? 1 : a.n_threads;
  parallel_for(out.rows, 1 + kAlonePacked / 4 / a.K, threads, [&](int64_t from, int64_t to) {
    for (int64_t m = from; m < to; ++m) {
      pack_row(a, out, order, begin + m, m);
      if (a.zero) sum_groups(a, begin + m, out.sums + m * a.G);
    }
  });
  return out;
}

}  // namespace ao::avx512
