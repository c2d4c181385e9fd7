// int8 tokens times integer weights; see int8_product.h. Tokens are quantized once a pass, then threads take blocks of
// kBlockRows rows of the weight.
#include "int8_product.h"

#ifdef AO_ISA_NAMESPACE

#include <cstring>

#include "floats.h"
#include "int8_tokens.h"
#include "parallel.h"
#include "scratch.h"
#if AO_ISA == AO_IS_avx512
#include "int8_product_avx512.h"
#else
#include "int8_product_portable.h"
#endif

namespace ao::AO_ISA_NAMESPACE {
namespace {

// Tokens of a pass: codes of at most 4 MiB, sums of a block of at most 64 KiB a thread.
int64_t pass_tokens(const LinearArgs& a) {
  return max_of(64, min_of(512, (int64_t{4} << 20) / a.K));
}

constexpr int64_t kAloneElements = 1 << 15;  // fewer elements of x are quantized by the caller alone
constexpr int64_t kAloneProducts = 1 << 18;  // fewer products (3 us of one core) are not worth waking a thread

Tokens allocate_tokens(const LinearArgs& a, int64_t count, int64_t n_segments) {
  Tokens x;
  x.count = count;
  // 64 bytes more than a round number: rows 4096 bytes apart would share their cache sets.
  x.stride = round_up(a.K, kTokenUnit) + 64;
  x.n_sums = round_up(a.G, 16);
  const int64_t per_token = x.stride + 4 * (n_segments + x.n_sums + 2);
  auto* memory = static_cast<char*>(scratch(0, static_cast<size_t>(count * per_token + 256)));
  x.codes = reinterpret_cast<int8_t*>(memory);
  x.group_sums = reinterpret_cast<float*>(memory + count * x.stride);
  x.segment_sums = reinterpret_cast<int32_t*>(x.group_sums + count * x.n_sums);
  x.scale = reinterpret_cast<float*>(x.segment_sums + count * n_segments);
  x.zero = x.scale + count;
  return x;
}

void fill_token(const LinearArgs& a, const Product& product, const Segments& segments, bool symmetric,
                int64_t m0, int64_t n_tokens, int64_t t, const Tokens& x) {
  int8_t* const codes = x.codes + t * x.stride;
  if (t < n_tokens) {
    const char* const row =
        static_cast<const char*>(a.x) + (m0 + t) * a.x_stride * dtype_bytes(a.x_dtype);
    quantize_token(row, a.x_dtype, a.K, symmetric, codes, x.scale + t, x.zero + t);
  } else {
    std::memset(codes, 1, static_cast<size_t>(a.K));
  }
  std::memset(codes + a.K, 0, static_cast<size_t>(x.stride - a.K));
  float* const sums = x.group_sums + t * x.n_sums;
  for (int64_t g = 0; g < x.n_sums; ++g) sums[g] = 0.0f;
  product.sum_segments(codes, segments, x.segment_sums + t * segments.count, sums);
  product.order_codes(codes, x.stride);
}

void pass(const LinearArgs& a, bool symmetric, int64_t m0, int64_t n_tokens) {
  const int64_t count = n_tokens + (symmetric ? 0 : 1);
  const Segments segments(a);
  const Product product(a, segments, count);
  const Tokens x = allocate_tokens(a, count, segments.count);
  const int token_threads = count * a.K < kAloneElements ? 1 : a.n_threads;
  parallel_for(count, 1 + (kAloneElements / 4) / a.K, token_threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      fill_token(a, product, segments, symmetric, m0, n_tokens, t, x);
  });

  const int64_t n_blocks = (a.N + kBlockRows - 1) / kBlockRows;
  const int threads = count * a.N * a.K < kAloneProducts ? 1 : a.n_threads;
  const int64_t grain = max_of(1, n_blocks / (32 * threads));
  parallel_for(n_blocks, grain, threads, [&](int64_t begin, int64_t end) {
    char* const memory =
        static_cast<char*>(scratch(3, product.scratch_bytes() + count * kBlockRows * sizeof(float)));
    float* const acc = reinterpret_cast<float*>(memory + product.scratch_bytes());
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n = block * kBlockRows;
      const int rows = static_cast<int>(min_of(kBlockRows, a.N - n));
      // After its last block a thread most likely gets the piece behind those of the other threads.
      const int64_t next = block + 1 < end ? block + 1 : block + 1 + (threads - 1) * grain;
      prefetch_block(a, m0, n_tokens, n);
      product.block(a, x, segments, n, rows, min_of(next * kBlockRows, a.N), memory, acc);
      store_block(a, x, m0, n_tokens, n, rows, symmetric ? nullptr : acc + n_tokens * kBlockRows, acc);
    }
  });
}

void run(const LinearArgs& a, bool symmetric) {
  const int64_t tokens = pass_tokens(a);
  for (int64_t m = 0; m < a.M; m += tokens) pass(a, symmetric, m, min_of(tokens, a.M - m));
}

}  // namespace

void int8_product_symmetric(const LinearArgs& a) { run(a, true); }
void int8_product_asymmetric(const LinearArgs& a) { run(a, false); }

}  // namespace ao::AO_ISA_NAMESPACE

#endif
