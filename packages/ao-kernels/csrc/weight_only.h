// Weight-only linear for one instruction set: weight_only_linear<B>(args), B bits a code, 0 for int8.
#pragma once
#include "isa.h"
#include "linear.h"
#include "parallel.h"

#if AO_ISA == AO_IS_avx512
#include "one_bit_avx512.h"
#include "tile_avx512.h"
#else
#include "weight_only_portable.h"
#endif

namespace ao::AO_ISA_NAMESPACE {

#if AO_ISA == AO_IS_avx512

template <int B, bool Whole>
void dot_pass(const LinearArgs& a, const Activations& x, const Groups& groups, int64_t m, int vectors,
              int64_t begin, int64_t end) {
  switch (vectors) {
    case 1: return dot_rows<B, 1, Whole>(a, x, groups, m, begin, end);
    case 2: return dot_rows<B, 2, Whole>(a, x, groups, m, begin, end);
    case 3: return dot_rows<B, 3, Whole>(a, x, groups, m, begin, end);
    case 4: return dot_rows<B, 4, Whole>(a, x, groups, m, begin, end);
    case 5: case 6: return dot_rows<B, 6, Whole>(a, x, groups, m, begin, end);
    default: return dot_rows<B, 8, Whole>(a, x, groups, m, begin, end);
  }
}

template <int B>
void dot_linear(const LinearArgs& a) {
  const Activations x = pack_activations(a, kDotOrder<B>, 0, a.M);
  const Groups groups = plan_groups<B>(a, x.n_chunks);
  const int64_t tokens = kDotVectors / x.planes;
  parallel_for(a.N, row_grain(a), row_threads(a), [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < a.M; m += tokens) {
      const auto vectors = static_cast<int>((a.M - m < tokens ? a.M - m : tokens) * x.planes);
      if (groups.whole) dot_pass<B, true>(a, x, groups, m, vectors, begin, end);
      else dot_pass<B, false>(a, x, groups, m, vectors, begin, end);
    }
  });
}

constexpr int64_t kSerialProducts = 1 << 20;  // 5 us of work

// Tokens a pass: about equally many, so that activations take at most 8 MB and the sums of a thread's tiles fit in its
// second-level cache.
inline int64_t pass_tokens(const LinearArgs& a) {
  const int64_t in_memory = (int64_t{8} << 20) / (n_planes(a.x_dtype) * (a.K + kChunk) * 2);
  const int64_t most = in_memory < 16 * kTileTokens ? 16 * kTileTokens : in_memory < 1024 ? in_memory : 1024;
  const int64_t n_passes = (a.M + most - 1) / most;
  const int64_t even = (a.M + n_passes - 1) / n_passes;
  return (even + kTileTokens - 1) / kTileTokens * kTileTokens;
}

template <int B>
void tile_linear(const LinearArgs& a) {
  const int64_t pass = pass_tokens(a);
  for (int64_t m = 0; m < a.M; m += pass) {
    const int64_t end = m + pass < a.M ? m + pass : a.M;
    const Activations x = pack_activations(a, kTileOrder<B>, m, end);
    const int64_t n_tiles = (a.N + kTileRows - 1) / kTileRows;
    const int threads = a.M * a.N * a.K < kSerialProducts ? 1 : a.n_threads;
    const int64_t even = (n_tiles + 4 * threads - 1) / (4 * threads);
    const int64_t grain = even < kTilesTogether ? even : kTilesTogether;
    parallel_for(n_tiles, grain, threads, [&](int64_t from, int64_t to) {
      multiply_tiles<B>(a, x, m, from, static_cast<int>(to - from), from + threads * grain);
    });
  }
}

template <int B>
void weight_only_linear(const LinearArgs& a) {
  if constexpr (B == 1) {
    if (table_fits(a)) return table_linear(a);
  }
  if (a.M * n_planes(a.x_dtype) <= dot_vectors_limit<B>) dot_linear<B>(a);
  else tile_linear<B>(a);
}

#else

template <int B>
void weight_only_linear(const LinearArgs& a) {
  portable_linear<B>(a);
}

#endif

}  // namespace ao::AO_ISA_NAMESPACE
