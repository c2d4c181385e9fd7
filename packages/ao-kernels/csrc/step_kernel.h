// A step of an optimizer on CPUs, part of the per-ISA sources csrc/adam_step.cpp and csrc/lion_step.cpp. Bit for bit the references in
// ao_kernels/ops: these sources are compiled without contraction of products and sums (CMakeLists.txt).
//
// A block of n elements is one unit of work: its moments are decoded, moved on, kept in a buffer of the stack while their largest magnitude
// is found, and encoded from there. Vectors are GCC's, as wide as the instruction set has them; what is no whole vector goes through
// buffers that are filled up with zeros.
#pragma once
#include <cmath>
#include <cstring>

#include "floats.h"
#include "optimizer_step.h"
#if AO_ISA == AO_IS_avx2 || AO_ISA == AO_IS_avx512
#include <immintrin.h>
#endif

namespace ao::AO_ISA_NAMESPACE {
namespace {

#if AO_ISA == AO_IS_avx512
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
constexpr int kLongestBlock = 4096;
constexpr uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u, kLargestBits = 0x43e00000u;  // of 448

typedef float Floats __attribute__((vector_size(4 * W)));
typedef uint32_t Words __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef uint8_t Bytes __attribute__((vector_size(W)));
typedef uint8_t HalfBytes __attribute__((vector_size(W / 2)));
typedef uint64_t Pairs __attribute__((vector_size(4 * W)));

inline Words words_of(Floats x) { return (Words)x; }
inline Floats floats_of(Words x) { return (Floats)x; }
inline Floats all(float x) { return Floats{} + x; }
inline Words all_words(uint32_t x) { return Words{} + x; }
inline Floats choose(Ints where, Floats a, Floats b) { return floats_of((words_of(a) & (Words)where) | (words_of(b) & ~(Words)where)); }
inline Words largest(Words a, Words b) { return a > b ? a : b; }

template <class V>
inline V read(const void* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class V>
inline void write(void* to, V x) {
  std::memcpy(to, &x, sizeof x);
}

// Whether store_bytes drops the upper bits of words; else it takes bytes only.
constexpr bool kTruncates = AO_ISA == AO_IS_avx512;

// Bytes and halves to words and back, whose upper bits are zero. gcc 11 takes the elements of __builtin_convertvector one by one.
#if AO_ISA == AO_IS_avx512
inline Words words_of_bytes(const void* from) { return (Words)_mm512_cvtepu8_epi32(read<__m128i>(from)); }
inline Words words_of_halves(const void* from) { return (Words)_mm512_cvtepu16_epi32(read<__m256i>(from)); }
inline Pairs pairs_of_bytes(const void* from) { return (Pairs)_mm512_cvtepu8_epi64(_mm_loadl_epi64(static_cast<const __m128i*>(from))); }
inline void store_bytes(void* to, Words x) { write(to, _mm512_cvtepi32_epi8((__m512i)x)); }
inline void store_halves(void* to, Words x) { write(to, _mm512_cvtepi32_epi16((__m512i)x)); }
inline void store_bytes(void* to, Pairs x) { _mm_storel_epi64(static_cast<__m128i*>(to), _mm512_cvtepi64_epi8((__m512i)x)); }
#elif AO_ISA == AO_IS_avx2
inline Words words_of_bytes(const void* from) { return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))); }
inline Words words_of_halves(const void* from) { return (Words)_mm256_cvtepu16_epi32(read<__m128i>(from)); }
inline Pairs pairs_of_bytes(const void* from) { return (Pairs)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(read<int32_t>(from))); }
inline __m128i halves_of(Words x) {
  const __m256i both = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x88));
}
inline void store_halves(void* to, Words x) { write(to, halves_of(x)); }
inline void store_bytes(void* to, Words x) {
  const __m128i halves = halves_of(x);
  _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
}
inline void store_bytes(void* to, Pairs x) {
  const __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi64x(0xff));
  const __m128i four = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  const __m128i halves = _mm_packus_epi32(four, four);
  write(to, _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves)));
}
#else
inline Words words_of_bytes(const void* from) { return __builtin_convertvector(read<Bytes>(from), Words); }
inline Words words_of_halves(const void* from) { return __builtin_convertvector(read<Halves>(from), Words); }
inline Pairs pairs_of_bytes(const void* from) { return __builtin_convertvector(read<HalfBytes>(from), Pairs); }
inline void store_bytes(void* to, Words x) { write(to, __builtin_convertvector(x, Bytes)); }
inline void store_halves(void* to, Words x) { write(to, __builtin_convertvector(x, Halves)); }
inline void store_bytes(void* to, Pairs x) { write(to, __builtin_convertvector(x, HalfBytes)); }
#endif

inline Floats root_of(Floats x) {
#if AO_ISA == AO_IS_avx512
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif AO_ISA == AO_IS_avx2
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// W elements of float32, bfloat16 or float16.
inline Floats widened(const void* x, DType dtype) {
  if (dtype == DType::f32) return read<Floats>(x);
  if (dtype == DType::bf16) return floats_of(words_of_halves(x) << 16);
#if AO_ISA == AO_IS_avx512
  return (Floats)_mm512_cvtph_ps(read<__m256i>(x));
#elif AO_ISA == AO_IS_avx2
  return (Floats)_mm256_cvtph_ps(read<__m128i>(x));
#else
  const Halves half = read<Halves>(x);
  Floats y;
  for (int i = 0; i < W; ++i) y[i] = f16_to_f32(half[i]);
  return y;
#endif
}

inline Words mixed(Words x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// The random words of ao_core/rounding.py for W pairs of elements from `pair` on. In memory the lower halves, which the even elements take,
// come first: words in a row are the bits of elements in a row.
inline Words random_words(uint64_t pair, uint32_t key) {
  Words lanes;
  for (int i = 0; i < W; ++i) lanes[i] = i;
  const Words low = all_words(static_cast<uint32_t>(pair)), each = low + lanes;
  const Words high = all_words(static_cast<uint32_t>(pair >> 32)) - (Words)(each < low);  // -1 is true
  return mixed(mixed(each + key) + high + mixed(all_words(key)));
}

// The bits of a where the mask has ones, else those of b.
inline Words merged(Words mask, Words a, Words b) {
#if AO_ISA == AO_IS_avx512
  return (Words)_mm512_ternarylogic_epi32((__m512i)mask, (__m512i)a, (__m512i)b, 0xca);
#else
  return (a & mask) | (b & ~mask);
#endif
}

inline void store(void* to, DType dtype, Floats x) {
  if (dtype == DType::f32) return write(to, x);
  if (dtype == DType::bf16) {
#if AO_ISA == AO_IS_avx512
    constexpr int kDenormal = 0x20;  // which the instruction takes for zero
    if (!_mm512_fpclass_ps_mask((__m512)x, kDenormal)) return write(to, _mm512_cvtneps_pbh((__m512)x));
#endif
    const Words bits = words_of(x);
    const Words nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, nan = bits >> 16 | 0x40u;
    return store_halves(to, (bits & ~kSign) > kInfinity ? nan : nearest);
  }
#if AO_ISA == AO_IS_avx512
  write(to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif AO_ISA == AO_IS_avx2
  write(to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  Halves half;
  for (int i = 0; i < W; ++i) half[i] = f32_to_f16(x[i]);
  write(to, half);
#endif
}

inline void store_randomly(void* to, Floats x, Words random) {
  const Words bits = words_of(x), size = bits & ~kSign;
  const Words upper = (size < kInfinity ? bits + random : size > kInfinity ? bits | 0x400000u : bits) >> 16;
  store_halves(to, upper);
}

// Of moments that are stored in full, elements are float32; of others W codes.
template <MomentFormat F>
constexpr int kCodeBits = F == MomentFormat::full ? 32 : F == MomentFormat::bits4 ? 4 : 8;

template <MomentFormat F>
inline Words codes_at(const void* from) {
  if constexpr (F != MomentFormat::bits4) return words_of_bytes(from);
  const Pairs x = pairs_of_bytes(from);  // b, 0 as words; then b & 15, b >> 4
  return (Words)(x | x << 28) & 15u;
}

template <MomentFormat F>
inline void store_codes(void* to, Words codes) {
  if constexpr (F != MomentFormat::bits4) return store_bytes(to, codes);
  const Pairs x = (Pairs)codes;
  store_bytes(to, x | x >> 28);
}

template <MomentFormat F, bool SIGNED>
inline Floats decoded(const void* from, float scale) {
  if constexpr (F == MomentFormat::full) return read<Floats>(from);
  constexpr Companding map = kCompanding<F, SIGNED>;
  const Words code = codes_at<F>(from);
  if constexpr (F == MomentFormat::e4m3) {
    const Words size = code & 0x7fu;
    const Floats small = __builtin_convertvector((Ints)size, Floats) * 0x1p-9f;
    Words x = size < 8u ? words_of(small) : (size << 20) + (120u << 23);
    x = size == 0x7fu ? all_words(0x7fc00000u) : x;
    return floats_of(x | (code & 0x80u) << 24) * scale;
  }
  constexpr int kShift = 23 - map.cell_bits;
  constexpr uint32_t kFirst = kTwo + kToValue<F, SIGNED>, kCode = (1u << map.width) - 1;
  const Words size = SIGNED ? code & kCode : code;
  Floats x = floats_of((size << kShift) + kFirst) - map.bias;
  if (SIGNED) x = floats_of(merged(all_words(kSign), code << (31 - map.width), words_of(x)));
  return x * scale;
}

// DITHERED: `words` are those of the elements.
template <MomentFormat F, bool SIGNED, bool DITHERED>
inline Words encoded(Floats x, float inv_scale, Words words) {
  constexpr Companding map = kCompanding<F, SIGNED>;
  const Words sign = words_of(x) & kSign;
  if constexpr (F == MomentFormat::e4m3) {
    Floats share = x * inv_scale;
    if (!SIGNED) share = choose(share > kSmallestE4m3, share, all(kSmallestE4m3));
    Words size = words_of(share) & ~kSign;
    size = size > kLargestBits ? all_words(kLargestBits) : size;
    const Words normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
    const Words small = words_of(floats_of(size) + 0x1p14f) - 0x46800000u;
    return (size < 0x3c800000u ? small : normal) | (SIGNED ? sign >> 24 : all_words(0));
  }
  const Floats size = SIGNED ? floats_of(words_of(x) & ~kSign) : x;
  Words f = words_of(size * inv_scale + map.bias);
  if (DITHERED) f += words >> (9 + map.cell_bits);
  else f += kToNearest<F, SIGNED>;
  if (map.bias < 2) f = largest(f, all_words(kTwo));
  Words code = f >> (23 - map.cell_bits);
  if (SIGNED) code = merged(all_words((1u << map.width) - 1), code, words_of(x) >> (31 - map.width));
  return kTruncates && F == MomentFormat::bits8 ? code : code & ((1u << (map.width + SIGNED)) - 1);
}

// The largest magnitude of a block as bits: they order like magnitudes, with inf and then NaN above all others.
inline uint32_t peak_of(Words peaks) {
  uint32_t peak = 0;
  for (int i = 0; i < W; ++i) peak = peaks[i] > peak ? peaks[i] : peak;
  return peak;
}

// P, G: the dtypes of parameters and gradients, or `other`, which looks them up for every vector.
template <MomentFormat F, StepRule RULE, DType P, DType G>
struct Block {
  static constexpr int kMoments = kMomentsOf<RULE>;
  const StepOptions o;
  const StepTensor t;  // copies, which no store of bytes can change
  int64_t block;       // elements [block * n, block * n + count)
  int count;

  DType p_dtype() const { return P == DType::other ? o.p_dtype : P; }
  DType g_dtype() const { return G == DType::other ? o.g_dtype : G; }

  uint8_t* codes(int k, int64_t at) const { return static_cast<uint8_t*>(t.values[k]) + at * kCodeBits<F> / 8; }

  // W elements; with WHOLE false only `left`, where the block or the parameter ends.
  template <bool WHOLE>
  [[gnu::always_inline]] void vector(int i, int left, const float (&scales)[kMoments], const uint16_t* random,
                                     float (&buffer)[kMoments][kLongestBlock], Words (&peaks)[kMoments]) const {
    const int64_t at = block * o.n + i;
    const int p_bytes = dtype_bytes(p_dtype()), g_bytes = dtype_bytes(g_dtype());
    char* const p_at = static_cast<char*>(t.p) + at * p_bytes;
    const char* const g_at = static_cast<const char*>(t.g) + at * g_bytes;
    const void* from[kMoments];
    for (int k = 0; k < kMoments; ++k) from[k] = codes(k, at);
    Floats p, g, moved[kMoments];
    if constexpr (WHOLE) {
      p = widened(p_at, p_dtype()), g = widened(g_at, g_dtype());
      update(p, g, from, scales, moved);
    } else {
      char p_buffer[4 * W] = {}, g_buffer[4 * W] = {}, codes_buffer[kMoments][4 * W] = {};
      std::memcpy(p_buffer, p_at, left * p_bytes);
      std::memcpy(g_buffer, g_at, left * g_bytes);
      for (int k = 0; k < kMoments; ++k) {
        std::memcpy(codes_buffer[k], from[k], (left * kCodeBits<F> + 7) / 8);
        from[k] = codes_buffer[k];
      }
      p = widened(p_buffer, p_dtype()), g = widened(g_buffer, g_dtype());
      update(p, g, from, scales, moved);
      for (int k = 0; k < kMoments; ++k)
        for (int j = left; j < W; ++j) moved[k][j] = 0;
    }
    for (int k = 0; k < kMoments; ++k) {
      if constexpr (F == MomentFormat::full) {
        std::memcpy(codes(k, at), &moved[k], 4 * (WHOLE ? W : left));
      } else {
        write(buffer[k] + i, moved[k]);
        peaks[k] = largest(peaks[k], words_of(moved[k]) & ~kSign);
      }
    }
    char rounded[4 * W];
    char* const to = WHOLE ? p_at : rounded;
    if (o.stochastic) store_randomly(to, p, words_of_halves(random + i));
    else store(to, p_dtype(), p);
    if (!WHOLE) std::memcpy(p_at, rounded, left * p_bytes);
  }

  [[gnu::always_inline]] void update(Floats& p, Floats g, const void* const* from, const float* scales, Floats* moved) const {
    const Floats m = decoded<F, true>(from[0], scales[0]);
    if (o.maximize) g = -g;
    if (o.decoupled) p *= t.scalars[0];
    else g += p * t.scalars[0];
    if constexpr (RULE == StepRule::lion) lion(p, g, m, moved);
    else adam(p, g, m, from, scales, moved);
  }

  [[gnu::always_inline]] void adam(Floats& p, Floats g, Floats m, const void* const* from, const float* scales, Floats* moved) const {
    const float* const s = t.scalars;
    Floats v = decoded<F, false>(from[1], scales[1]);
    m = m * s[1] + g * s[2];
    v = v * s[3] + g * g * s[4];
    moved[0] = m;
    moved[1] = v;
    if constexpr (RULE == StepRule::amsgrad) {
      const Floats u = decoded<F, false>(from[2], scales[2]);
      v = choose((u > v) | (u != u), u, v);
      moved[2] = v;
    }
    p -= m / (root_of(v) * s[5] + s[6]) * s[7];
  }

  [[gnu::always_inline]] void lion(Floats& p, Floats g, Floats m, Floats* moved) const {
    const float* const s = t.scalars;
    const Floats mixed = m * s[1] + g * s[2];
    const Floats none = mixed * 0.0f;  // NaN stays NaN
    p -= choose(mixed > 0, all(s[5]), choose(mixed < 0, all(-s[5]), none));
    moved[0] = m * s[3] + g * s[4];
  }

  template <bool SIGNED, bool DITHERED>
  void save(int k, const float (&x)[kLongestBlock], uint32_t peak) const {
    const int64_t begin = block * o.n;
    float s = bits_to_f32(peak) * kInvTop<F, SIGNED, DITHERED>;
    s = s < 0x1p-126f ? 0x1p-126f : s;
    const bool finite = peak < kInfinity;
    t.scales[k][block] = finite ? s : bits_to_f32(0x7fc00000);
    if (!finite) {
      std::memset(codes(k, begin), 0, static_cast<size_t>(o.n) * kCodeBits<F> / 8);
      return;
    }
    const float inverse = 1.0f / s;
    Words words = {};
    if (DITHERED)
      for (int i = 0; i < W; ++i) words[i] = (t.dither + static_cast<uint32_t>(begin + i) * kDitherOfElement) * kDitherOf<SIGNED>;
    int i = 0;
    for (; i + W <= o.n; i += W, words += W * kDitherOfElement * kDitherOf<SIGNED>)
      store_codes<F>(codes(k, begin + i), encoded<F, SIGNED, DITHERED>(read<Floats>(x + i), inverse, words));
    if (i < o.n) {  // eight, where vectors are longer
      char some[4 * W];
      store_codes<F>(some, encoded<F, SIGNED, DITHERED>(read<Floats>(x + i), inverse, words));
      std::memcpy(codes(k, begin + i), some, (o.n - i) * kCodeBits<F> / 8);
    }
  }

  template <bool DITHERED>
  void save_two(const float (&buffer)[kMoments][kLongestBlock], const Words* peaks) const {
    save<true, DITHERED>(0, buffer[0], peak_of(peaks[0]));
    if constexpr (kMoments > 1) save<false, DITHERED>(1, buffer[1], peak_of(peaks[1]));
  }

  void step() const {
    alignas(64) float buffer[kMoments][kLongestBlock];
    Words peaks[kMoments] = {};
    float scales[kMoments] = {};
    if constexpr (F != MomentFormat::full)
      for (int k = 0; k < kMoments; ++k) scales[k] = t.scales[k][block];
    alignas(64) uint16_t random_bits[kLongestBlock + 4 * W];  // of the block's elements, from the first or, where that is odd, the second on
    const int64_t first = t.offset + block * o.n;
    const int odd = first & 1;
    if (o.stochastic)
      for (int k = 0; k < count + odd; k += 2 * W) write(random_bits + k, random_words(static_cast<uint64_t>(first) / 2 + k / 2, t.key));
    const uint16_t* const random = random_bits + odd;
    int i = 0;
    for (; i + W <= count; i += W) vector<true>(i, W, scales, random, buffer, peaks);
    if (i < count) vector<false>(i, count - i, scales, random, buffer, peaks), i += W;
    if constexpr (F != MomentFormat::full) {
      for (int k = 0; k < kMoments; ++k)
        for (int j = i; j < o.n; ++j) buffer[k][j] = 0;
      if (F == MomentFormat::bits4 && o.dithered) save_two<F == MomentFormat::bits4>(buffer, peaks);
      else save_two<false>(buffer, peaks);
      if constexpr (kMoments > 2) save<false, false>(2, buffer[2], peak_of(peaks[2]));
    }
  }
};

template <MomentFormat F, StepRule RULE, DType P, DType G>
void step_dtypes(const StepOptions& o, const StepTensor& t, int64_t first, int64_t last) {
  Block<F, RULE, P, G> each{o, t, 0, 0};
  for (each.block = first; each.block < last; ++each.block) {
    const int64_t left = t.numel - each.block * o.n;
    each.count = static_cast<int>(left < o.n ? left : o.n);
    each.step();
  }
}

template <MomentFormat F, StepRule RULE>
void step_as(const StepOptions& o, const StepTensor& t, int64_t first, int64_t last) {
  if (o.p_dtype == DType::f32 && o.g_dtype == DType::f32) return step_dtypes<F, RULE, DType::f32, DType::f32>(o, t, first, last);
  if (o.p_dtype == DType::bf16 && o.g_dtype == DType::bf16) return step_dtypes<F, RULE, DType::bf16, DType::bf16>(o, t, first, last);
  step_dtypes<F, RULE, DType::other, DType::other>(o, t, first, last);
}

// Blocks [first, last) of a parameter.
template <StepRule RULE>
void step_blocks(const StepOptions& o, const StepTensor& t, int64_t first, int64_t last) {
  switch (o.format) {
    case MomentFormat::bits8: return step_as<MomentFormat::bits8, RULE>(o, t, first, last);
    case MomentFormat::bits4: return step_as<MomentFormat::bits4, RULE>(o, t, first, last);
    case MomentFormat::e4m3: return step_as<MomentFormat::e4m3, RULE>(o, t, first, last);
    default: return step_as<MomentFormat::full, RULE>(o, t, first, last);
  }
}

}  // namespace
}  // namespace ao::AO_ISA_NAMESPACE
