// Weight-only int4 linear of some tens of tokens on Hopper, groups of a multiple of 128, no zeros, bfloat16:
//
//   y[m, n] = sum_g scale[n, g] * (sum_{k in g} x[m, k] * (code[n, k] - 8)) + bias[n]      float32 sums of exact products
//
// wgmma takes whole warpgroups, and its products hardly overlap with the conversion of codes (docs/decisions/0018). Here a warp
// multiplies by mma.m16n8k16 when its own codes are converted. The copy engine fills a ring of stages, 128 input features each. WN
// warps share the output features of a tile, WK the input features of a stage; `split` CTAs of a cluster share K. All are added in the
// order of their ranks, so that bits repeat.
//
// A lane takes eight codes that follow each other in a row as one word. Two masks and one shift make four pairs of it, codes i and i + 4
// (weight_only_large_int4.cuh says how), so the same two values of a token stand in a pair there.
#pragma once
#include "cuda/floats.cuh"
#include "cuda/fragments.cuh"
#include "cuda/tma.cuh"
#include "cuda/weight_only_large_tile.cuh"

namespace ao::large {

// F: fragments of 16 output features of a warp. NT: eights of tokens. CTAS: of a multiprocessor.
template <int F_, int WN_, int WK_, int NT_, int CTAS_>
struct MidTile {
  static constexpr int F = F_, WN = WN_, WK = WK_, NT = NT_, CTAS = CTAS_;
  static constexpr int BM = 8 * NT, BN = 16 * F * WN, kWarps = WN * WK, kThreads = 32 * kWarps;
  static constexpr int kCodes = BN * 64, kQuarterX = BM * 64, kStage = kCodes + 4 * kQuarterX;
  static constexpr int STAGES = ((228 << 10) / CTAS - 2048) / (kStage + 16);  // fill a CTA's share of the shared memory
  static constexpr int kPitch = BN + 4;  // floats of a token's sums; 2 * kPitch % 32 == 8: no bank conflicts
  static constexpr int kParts = WK * BM * kPitch * 4, kRing = STAGES * kStage;
  static constexpr int kShared = 1024 + (kRing > kParts ? kRing : kParts) + 16 * STAGES;
  static_assert(kCodes % 1024 == 0 && kStage % 1024 == 0);
};

constexpr uint32_t kLowerCodeScale = 0x7f007f00, kUpperCodeScale = 0x7d007d00;  // 2**127 and 2**123: both make code / 64

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::CTAS)
weight_only_mid(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map, const LargeArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = T::STAGES, F = T::F, NT = T::NT;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t full = ring + (T::kRing > T::kParts ? T::kRing : T::kParts), left = full + 8 * STAGES;
  const int tiles_m = (a.M + T::BM - 1) / T::BM, rank = blockIdx.x % a.split, tile = blockIdx.x / a.split;
  const int m0 = tile % tiles_m * T::BM, n0 = tile / tiles_m * T::BN;
  const int n_blocks = (a.K + kStageK - 1) / kStageK, per_split = (n_blocks + a.split - 1) / a.split;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);

  const auto load_codes = [&](int block, int stage) {
    barrier_expect(full + 8 * stage, T::kStage);
    load_box(ring + stage * T::kStage, &codes_map, block * 64, n0, full + 8 * stage);
  };
  const auto load_tokens = [&](int block, int stage) {
    load_box_3d(ring + stage * T::kStage + T::kCodes, &x_map, 0, m0, 4 * block, full + 8 * stage);
  };
  const int at_first = min(STAGES, last - first);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(left + 8 * s, T::kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    if (a.chained)
      for (int i = 0; i < at_first; ++i) load_codes(first + i, i);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int wn = warp % T::WN, wk = warp / T::WN;

  // Scales of four blocks, one a lane of the row's four: rows g and g + 8 of each fragment.
  uint32_t scales[F], next[F];
  const auto fetch = [&](int block) {
    int group = min(block + t, n_blocks - 1);
    if (a.group_size != kStageK) group = static_cast<uint32_t>(group) / static_cast<uint32_t>(a.group_size / kStageK);
#pragma unroll
    for (int f = 0; f < F; ++f) {
      uint32_t both[2];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int row = min(n0 + (wn * F + f) * 16 + g + 8 * part, a.N - 1);
        both[part] = load_shared_sector(static_cast<const uint16_t*>(a.scale) + int64_t{row} * a.scale_stride + group);
      }
      next[f] = both[0] | both[1] << 16;
    }
  };
  if (a.chained) fetch(first);
  wait_for_earlier_grids();
  if (threadIdx.x == 0) {
    let_later_grids_start();
    for (int i = 0; i < at_first; ++i) {
      if (!a.chained) load_codes(first + i, i);
      load_tokens(first + i, i);
    }
  }
  if (!a.chained) fetch(first);
  __syncthreads();

  float sum[F][NT][4] = {};
  // Of this lane's first word in a stage, before the swizzle, and of its first token.
  uint32_t my_codes = (wn * F * 16 + g) * 64 + (g >> 1 & 3) * 16 + 4 * t;
  uint32_t my_x = T::kCodes + g * 64 + t * 16;
  asm volatile("" : "+r"(my_codes), "+r"(my_x));  // kept, not made again every time
  int stage = 0, phase = 0;
  for (int block = first; block < last; ++block) {
    if ((block - first) % 4 == 0) {
#pragma unroll
      for (int f = 0; f < F; ++f) scales[f] = next[f];
      if (block + 4 < last) fetch(block + 4);
    }
    uint32_t scale[F];  // of rows g and g + 8
#pragma unroll
    for (int f = 0; f < F; ++f) scale[f] = __shfl_sync(~0u, scales[f], (block - first) % 4, 4);
    barrier_wait(full + 8 * stage, phase);
    const uint32_t from = ring + stage * T::kStage;
    float part[F][NT][4];
#pragma unroll
    for (int c = 0; c < 4; c += T::WK) {
      const int quarter = c + (T::WK == 1 ? 0 : wk);
      uint32_t words[2 * F];
      uint4 tokens[NT];
#pragma unroll
      for (int r = 0; r < 2 * F; ++r)
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[r]) : "r"(from + (my_codes ^ quarter * 16) + r * 512));
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tokens[nt].x), "=r"(tokens[nt].y), "=r"(tokens[nt].z), "=r"(tokens[nt].w)
                     : "r"(from + my_x + quarter * T::kQuarterX + nt * 512));
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        const uint4 v = tokens[nt];
        tokens[nt] = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
                      __byte_perm(v.y, v.w, 0x7632)};
      }
#pragma unroll
      for (int f = 0; f < F; ++f) {
        uint32_t operand[2][4];  // of two products
#pragma unroll
        for (int part_of = 0; part_of < 2; ++part_of) {
          const uint32_t word = words[2 * f + part_of], upper = word >> 8;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t pair;
            if (i % 2) asm("lop3.b32 %0, %1, 0x00f000f0, 0, 0xc0;" : "=r"(pair) : "r"(i / 2 ? upper : word));
            else asm("lop3.b32 %0, %1, 0x000f000f, 0, 0xc0;" : "=r"(pair) : "r"(i / 2 ? upper : word));
            const __nv_bfloat162 by = pair_of(i % 2 ? kUpperCodeScale : kLowerCodeScale);
            operand[i / 2][part_of + i % 2 * 2] = bits_of(__hfma2(pair_of(pair), by, __nv_bfloat162(-0.125f, -0.125f)));
          }
        }
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) {
          const float none[4] = {};
          if (c == 0) multiply_add_to(part[f][nt], operand[0], tokens[nt].x, tokens[nt].y, none);
          else multiply_add_to(part[f][nt], operand[0], tokens[nt].x, tokens[nt].y, part[f][nt]);
        }
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) multiply_add_to(part[f][nt], operand[1], tokens[nt].z, tokens[nt].w, part[f][nt]);
      }
    }
    // Warps take turns in having a stage filled again, one stage late, so that nobody has to be waited for.
    if (lane == 0) {
      barrier_arrive(left + 8 * stage);
      const int next_block = block - 1 + STAGES;
      if (block > first && next_block < last && (block - first) % T::kWarps == warp) {
        const int before = stage ? stage - 1 : STAGES - 1;
        barrier_wait(left + 8 * before, stage ? phase : phase ^ 1);
        load_codes(next_block, before);
        load_tokens(next_block, before);
      }
    }
    __syncwarp();
#pragma unroll
    for (int f = 0; f < F; ++f) {
      const float by[2] = {__uint_as_float(scale[f] << 16), __uint_as_float(scale[f] & 0xffff0000u)};
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[f][nt][i] = fmaf(part[f][nt][i], by[i / 2], sum[f][nt][i]);
    }
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }

  // Sums of the warps, in shared memory, then of the CTAs, in the order of their ranks.
  __syncthreads();  // all stages have been read
  constexpr float kFactor = 64.0f;  // weights were (code - 8) / 64
#pragma unroll
  for (int f = 0; f < F; ++f)
#pragma unroll
    for (int nt = 0; nt < NT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * nt + 2 * t + i % 2, row = (wn * F + f) * 16 + g + i / 2 * 8;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(ring + 4 * ((wk * T::BM + token) * T::kPitch + row)), "f"(sum[f][nt][i] * kFactor)
                     : "memory");
      }
  if (a.split > 1) cluster_sync();
  else __syncthreads();
  constexpr int kFours = T::BN / 4;
  for (int i = rank * T::kThreads + threadIdx.x; i < T::BM * kFours; i += a.split * T::kThreads) {
    const int token = i / kFours, n = n0 + i % kFours * 4, m = m0 + token;
    if (m >= a.M || n >= a.N) continue;
    const uint32_t at = ring + 4 * (token * T::kPitch + i % kFours * 4);
    float v[4] = {};
    for (int r = 0; r < a.split; ++r)
#pragma unroll
      for (int w = 0; w < T::WK; ++w) {
        const float4 one = load_remote(at + 4 * w * T::BM * T::kPitch, r);
        v[0] += one.x, v[1] += one.y, v[2] += one.z, v[3] += one.w;
      }
    __nv_bfloat16 out[4];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      out[e] = __float2bfloat16(v[e] + (a.bias ? load_float(a.bias, a.bias_dtype, min(n + e, a.N - 1)) : 0.0f));
    __nv_bfloat16* const y = a.y + int64_t{m} * a.N + n;
    if (a.N % 4 == 0) {
      *reinterpret_cast<uint2*>(y) = *reinterpret_cast<uint2*>(out);
    } else {
      for (int e = 0; e < 4; ++e)
        if (n + e < a.N) y[e] = out[e];
    }
  }
  if (a.split > 1) cluster_sync();  // the others may still read this CTA's memory
#endif
}

}  // namespace ao::large
