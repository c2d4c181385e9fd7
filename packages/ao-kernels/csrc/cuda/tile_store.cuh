// The results of a tile of the wgmma kernels, from registers to memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "types.h"

namespace ao::large {

constexpr int kStoredTokens = 32;  // that pass through shared memory together, or all if there are fewer

// Bytes of shared memory that a tile passes through.
constexpr int store_bytes(int warpgroups, int tokens, int buffers = 1) {
  return warpgroups * buffers * (tokens < kStoredTokens ? tokens : kStoredTokens) * 128;
}

// Two values of bf16 or f16.
__device__ inline uint32_t pack_two(DType dtype, float low, float high) {
  if (dtype == DType::bf16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// y (M, N) of 16 bits: 64 output features of this warpgroup from n0 on, BM tokens from m0 on. pair(j, part) has tokens 8 j + 2 t and 8 j + 2 t + 1
// of row g + 8 part of the warp's sixteen, for lane 4 g + t. Through shared memory, so that stores are 128 bytes long. With two buffers in
// turn the warpgroup meets once a turn instead of twice, and must meet between two tiles.
template <int BM, int BUFFERS = 1, class Pair>
__device__ inline void store_tile(uint16_t* y, int M, int N, int m0, int n0, int warpgroup, uint32_t buffer, Pair&& pair) {
  constexpr int kTokens = BM < kStoredTokens ? BM : kStoredTokens;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const bool aligned = N % 8 == 0;
  const uint32_t first_buffer = buffer + warpgroup * BUFFERS * kTokens * 128;
#pragma unroll
  for (int c = 0; c < BM / kTokens; ++c) {
    if (m0 + c * kTokens >= M) break;
    buffer = first_buffer + c % BUFFERS * kTokens * 128;
#pragma unroll
    for (int half = 0; half < kTokens / 16; ++half) {
      const int j = (c * kTokens + half * 16) / 8;
      const uint32_t v[4] = {pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1)};
      const int token = half * 16 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       buffer + token * 128 + (piece ^ (token & 7)) * 16),
                   "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                   : "memory");
    }
    asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
#pragma unroll
    for (int i = 0; i < kTokens / 16; ++i) {
      const int token = (i * 128 + thread) / 8, piece = thread % 8;
      uint4 v;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(buffer + token * 128 + (piece ^ (token & 7)) * 16));
      const int m = m0 + c * kTokens + token, n = n0 + piece * 8;
      if (m >= M || n >= N) continue;
      uint16_t* const to = y + int64_t{m} * N + n;
      if (aligned) {
        *reinterpret_cast<uint4*>(to) = v;
      } else {
        const uint16_t* each = reinterpret_cast<const uint16_t*>(&v);
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (n + e < N) to[e] = each[e];
      }
    }
    if constexpr (BUFFERS == 1) asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
  }
}

// The same of float32, always with two buffers: value(j, part, e) is of token 8 j + 2 t + e. Sixteen tokens at a time, as rows of 16 pieces of 16 bytes, of
// which pairs change places by the token: neither writes nor reads meet in a bank.
template <int BM, class Value>
__device__ inline void store_tile_f32(float* y, int M, int N, int m0, int n0, int warpgroup, uint32_t buffer, Value&& value) {
  constexpr int kTokens = 16;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, t = lane % 4, g = lane / 4;
  const bool aligned = N % 4 == 0;
  const uint32_t first_buffer = buffer + warpgroup * 2 * kTokens * 256;
#pragma unroll
  for (int c = 0; c < BM / kTokens; ++c) {
    if (m0 + c * kTokens >= M) break;
    buffer = first_buffer + c % 2 * kTokens * 256;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int j = i / 4, part = i / 2 % 2, e = i % 2, token = 8 * j + 2 * t + e, row = warp * 16 + g + 8 * part;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(buffer + token * 256 + (row / 4 ^ 2 * t) * 16 + row % 4 * 4), "f"(value(2 * c + j, part, e))
                   : "memory");
    }
    asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = (i * 128 + thread) / 16, piece = thread % 16;
      float4 v;
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                   : "r"(buffer + token * 256 + (piece ^ 2 * (token / 2 % 4)) * 16));
      const int m = m0 + c * kTokens + token, n = n0 + piece * 4;
      if (m >= M || n >= N) continue;
      float* const to = y + int64_t{m} * N + n;
      if (aligned) {
        *reinterpret_cast<float4*>(to) = v;
      } else {
        const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (n + k < N) to[k] = each[k];
      }
    }
  }
}

}  // namespace ao::large
