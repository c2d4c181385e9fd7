// Embedding rows in plain C++ with fixed trip counts, so that a compiler vectorises it for each instruction set.
#pragma once
#include "embedding.h"
#include "floats.h"
#include "int8_lanes.h"
#include "parallel.h"

namespace ao::AO_ISA_NAMESPACE {
namespace {

constexpr int64_t kAloneCodes = 1 << 16;  // fewer codes are not worth a second thread
constexpr int kStretch = 64;              // codes at a time; 8 divides every group that is not the last

// Codes [k, k + n) of a row minus the middle code; k a multiple of 8, n at most kStretch. Writes whole eights.
inline void read_codes(const EmbeddingArgs& a, const uint8_t* row, int64_t k, int64_t n, Code* out) {
  if (a.bits == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(row[k + i]);
    return;
  }
  const uint8_t* unit = row + k / 8 * a.bits;
  for (int64_t i = 0; i < n; i += 8, unit += a.bits) {
    uint64_t word = 0;
    for (int b = 0; b < a.bits; ++b) word |= uint64_t{unit[b]} << (8 * b);
    spread_eight(word, a.bits, out + i);
  }
}

template <DType D>
void write_row(const EmbeddingArgs& a, int64_t i) {
  const int64_t n = a.row(i);
  const uint8_t* const row = a.codes + n * a.row_bytes;
  const int middle = a.bits ? 1 << (a.bits - 1) : 0;
  Code codes[kStretch] = {};
  for (int64_t g = 0; g < a.G; ++g) {
    const int64_t at = n * a.scale_stride + g, begin = g * a.group_size;
    const int64_t end = begin + a.group_size < a.K ? begin + a.group_size : a.K;
    const float scale = load_f32(a.scale, a.scale_dtype, at);
    const float zero = a.zero ? load_f32(a.zero, a.scale_dtype, at) : static_cast<float>(middle);
    for (int64_t k = begin; k < end; k += kStretch) {
      const int64_t length = end - k < kStretch ? end - k : kStretch;
      read_codes(a, row, k, length, codes);
      float values[kStretch];
      for (int j = 0; j < kStretch; ++j) values[j] = (static_cast<float>(codes[j] + middle) - zero) * scale;
      for (int64_t j = 0; j < length; ++j) store_f32(a.out, D, i * a.K + k + j, values[j]);
    }
  }
}

inline void embedding_rows(const EmbeddingArgs& a) {
  const int threads = a.count * a.K < kAloneCodes ? 1 : a.n_threads;
  parallel_for(a.count, 1 + (kAloneCodes / 4) / a.K, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (a.out_dtype == DType::bf16) write_row<DType::bf16>(a, i);
      else if (a.out_dtype == DType::f16) write_row<DType::f16>(a, i);
      else write_row<DType::f32>(a, i);
    }
  });
}

}  // namespace
}  // namespace ao::AO_ISA_NAMESPACE
