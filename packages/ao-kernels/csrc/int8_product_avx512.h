// The AVX-512 (VNNI, VBMI) kernels of int8_product: which one serves a call, and what surrounds them.
#pragma once
#include <cstring>

#include "floats.h"
#include "int8_dot_avx512.h"
#include "int8_panel_avx512.h"

namespace ao::avx512 {
namespace {

constexpr int64_t kTokenUnit = 512;  // codes of the longest chunk
constexpr int kMaxDotTokens = 9;  // eight, and the one of ones

template <int P, bool Many>
void dot_any(const LinearArgs& a, const Tokens& x, int64_t n, int rows, float* acc) {
  const ChunkCodes<P> codes(a.bits);
  switch (x.count) {
    case 1: return dot_block<P, 1, Many>(a, codes, x, n, rows, acc);
    case 2: return dot_block<P, 2, Many>(a, codes, x, n, rows, acc);
    case 3: return dot_block<P, 3, Many>(a, codes, x, n, rows, acc);
    case 4: return dot_block<P, 4, Many>(a, codes, x, n, rows, acc);
    case 5: return dot_block<P, 5, Many>(a, codes, x, n, rows, acc);
    case 6: return dot_block<P, 6, Many>(a, codes, x, n, rows, acc);
    case 7: return dot_block<P, 7, Many>(a, codes, x, n, rows, acc);
    case 8: return dot_block<P, 8, Many>(a, codes, x, n, rows, acc);
    default: return dot_block<P, 9, Many>(a, codes, x, n, rows, acc);
  }
}

template <int P>
struct Kernels {
  static constexpr int kRegisters = ChunkCodes<P>::kRegisters;

  static bool dot(const LinearArgs& a, int64_t count) {
    return dot_fits<P>(a) && count <= kMaxDotTokens;
  }
  static bool many(const LinearArgs& a) {
    return a.G == 1 || a.group_size > 2 * ChunkCodes<P>::kCodes;
  }
  static void panel(const LinearArgs& a, const Tokens& x, const Stretches& stretches, int64_t n, int rows,
                    int64_t next, char* memory, float* acc) {
    panel_block<P>(a, ChunkCodes<P>(a.bits), x, stretches, n, rows, next, *reinterpret_cast<Panel*>(memory), acc);
  }
  static void dots(const LinearArgs& a, const Tokens& x, int64_t n, int rows, float* acc) {
    return many(a) ? dot_any<P, true>(a, x, n, rows, acc) : dot_any<P, false>(a, x, n, rows, acc);
  }
};

// How a call is computed, chosen once.
class Product {
 public:
  Product(const LinearArgs& a, const Segments& segments, int64_t count)
      : planes_(planes_of(a)), middle_(middle(a)) {
    choose([&](auto kernels) {
      dot_ = decltype(kernels)::dot(a, count);
      if (!dot_) stretches_ = plan_stretches(segments, decltype(kernels)::kRegisters);
    });
    run_ = dot_ ? 64 : 4;
  }

  size_t scratch_bytes() const { return dot_ ? 0 : sizeof(Panel); }

  // Sums of codes: as they are by group, times -middle by segment (where an int32 dot product starts).
  void sum_segments(const int8_t* codes, const Segments& segments, int32_t* by_segment,
                    float* by_group) const {
    const __m512i one = _mm512_set1_epi8(1);
    alignas(64) int32_t fours[kSegment / 4];
    for (int64_t s = 0; s < segments.count;) {
      // As many segments as kSegment codes hold; zeros follow the last code.
      const int64_t start = segments.begin(s), stop = min_of(start + kSegment, segments.K);
      for (int64_t k = 0; k < stop - start; k += 64)
        _mm512_store_si512(fours + k / 4, dot4(_mm512_setzero_si512(), one, _mm512_loadu_si512(codes + start + k)));
      for (; s < segments.count && segments.end(s) <= stop; ++s) {
        int32_t sum = 0;
        const int64_t end = (segments.end(s) - start + 3) / 4;
        for (int64_t i = (segments.begin(s) - start) / 4; i < end; ++i) sum += fours[i];
        by_segment[s] = -middle_ * sum;
        by_group[segments.group(s)] += static_cast<float>(sum);
      }
    }
  }

  // To the order of the planes: of `run` * planes codes, first those in plane 0, and so on.
  void order_codes(int8_t* codes, int64_t length) const {
    if (planes_ <= 1) return;
    const int unit = run_ * planes_;
    if (unit <= 64) {
      alignas(64) uint8_t from[64];
      for (int i = 0; i < 64; ++i)
        from[i] = static_cast<uint8_t>(i / unit * unit + i % run_ * planes_ + i % unit / run_);
      const __m512i index = _mm512_load_si512(from);
      for (int64_t k = 0; k + 64 <= length; k += 64)
        _mm512_storeu_si512(codes + k, _mm512_permutexvar_epi8(index, _mm512_loadu_si512(codes + k)));
      return;
    }
    alignas(64) int8_t natural[512];
    for (int64_t k = 0; k + unit <= length; k += unit) {
      std::memcpy(natural, codes + k, static_cast<size_t>(unit));
      for (int i = 0; i < planes_; ++i) {
        const __m512i bytes = _mm512_load_si512(natural + 64 * i);
        for (int p = 0; p < planes_; ++p) store_plane(bytes, p, codes + k + p * run_ + i * (64 / planes_));
      }
    }
  }

  void block(const LinearArgs& a, const Tokens& x, const Segments&, int64_t n, int rows, int64_t next,
             char* memory, float* acc) const {
    choose([&](auto kernels) {
      if (dot_) decltype(kernels)::dots(a, x, n, rows, acc);
      else decltype(kernels)::panel(a, x, stretches_, n, rows, next, memory, acc);
    });
  }

 private:
  // Every planes_-th byte, from byte p on.
  void store_plane(__m512i bytes, int p, int8_t* out) const {
    const __m128i shift = _mm_cvtsi32_si128(8 * p);
    if (planes_ == 2) {
      const __m512i lanes = _mm512_srl_epi16(bytes, shift);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(lanes));
    } else if (planes_ == 4) {
      const __m512i lanes = _mm512_srl_epi32(bytes, shift);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(lanes));
    } else {
      const __m512i lanes = _mm512_srl_epi64(bytes, shift);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm512_cvtepi64_epi8(lanes));
    }
  }

  template <class Body>
  void choose(Body&& body) const {
    switch (planes_) {
      case 1: return body(Kernels<1>{});
      case 2: return body(Kernels<2>{});
      case 4: return body(Kernels<4>{});
      case 8: return body(Kernels<8>{});
      default: return body(Kernels<0>{});
    }
  }

  int planes_, middle_, run_;
  bool dot_;
  Stretches stretches_ = {};
};

// y = (acc - zero * ones) * scale + bias; `ones` is what the token of ones gave, or nullptr.
void store_block(const LinearArgs& a, const Tokens& x, int64_t m0, int64_t n_tokens, int64_t n, int rows,
                 const float* ones, const float* acc) {
  alignas(64) float bias[kBlockRows] = {};
  for (int i = 0; a.bias && i < rows; ++i) bias[i] = load_f32(a.bias, a.bias_dtype, n + i);
  const __m512 nothing = _mm512_setzero_ps();
  for (int64_t t = 0; t < n_tokens; ++t) {
    const __m512 zero = _mm512_set1_ps(x.zero[t]), scale = _mm512_set1_ps(x.scale[t]);
    for (int half = 0; half < rows; half += 16) {
      const __m512 one = ones ? _mm512_load_ps(ones + half) : nothing;
      const __m512 sum = _mm512_fnmadd_ps(zero, one, _mm512_load_ps(acc + t * kBlockRows + half));
      const __mmask16 mask = rows - half >= 16 ? 0xffff : static_cast<__mmask16>((1u << (rows - half)) - 1);
      store_16(a.y, a.x_dtype, (m0 + t) * a.N + n + half, mask,
              _mm512_fmadd_ps(scale, sum, _mm512_load_ps(bias + half)));
    }
  }
}

// The lines of y that a block will write, asked for early: they are far apart, and each costs a trip to memory.
void prefetch_block(const LinearArgs& a, int64_t m0, int64_t n_tokens, int64_t n) {
  const int64_t row = a.N * dtype_bytes(a.x_dtype);
  const char* y = static_cast<const char*>(a.y) + m0 * row + n * dtype_bytes(a.x_dtype);
  for (int64_t t = 0; t < n_tokens; ++t, y += row) __builtin_prefetch(y, 1);
}

}  // namespace
}  // namespace ao::avx512
