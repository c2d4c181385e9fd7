// int8 and float8 codes as the left operand of weight_only_large.cuh.
#pragma once
#include "cuda/codes.cuh"
#include "cuda/weight_only_large_tile.cuh"

namespace ao::large {

// Two adjacent codes -> two bf16, exactly.
__device__ inline __nv_bfloat162 int8_pair(uint32_t codes) {
  const uint32_t spread = __byte_perm(codes, 0, 0x4140);
  // A bf16 holds 7 bits behind 128: the lower 7 go there, and the sign makes 128 or 256 of what is subtracted.
  return __hsub2(pair_of(and_or<0x007f007fu, 0x43004300u>(spread)), pair_of(and_or<0x00800080u, 0x43004300u>(spread)));
}

// Two adjacent codes / 64, exactly. code + 128 in the last bits of a bf16 is that times 2**-133: exponents of 0 and 1 have the same step.
__device__ inline __nv_bfloat162 int8_pair_64th(uint32_t codes) {
  const uint32_t spread = and_xor<0x00ff00ffu, 0x00800080u>(__byte_perm(codes, 0, 0x4140));
  return __hfma2(pair_of(spread), pair_of(0x7f007f00), __nv_bfloat162(-2.0f, -2.0f));
}

template <int CODES>
__device__ inline float2 float8_pair(uint32_t codes) {
  const auto both = static_cast<__nv_fp8x2_storage_t>(codes);
  return __half22float2(__nv_cvt_fp8x2_to_halfraw2(both, CODES == kE4m3 ? __NV_E4M3 : __NV_E5M2));
}

// Weights are code * scale, rounded once: int8 codes by a bf16 scale, float8 codes by a float32 one.
template <class Tile>
class ByteWeights {
 public:
  static constexpr int CODES = Tile::CODES, NS = Tile::NS, NP = NS == 0 ? 1 : NS;
  static constexpr float kFactor = CODES == kInt8 && NS == 0 ? 64.0f : 1.0f;  // of the sums
  static_assert(NS == 0 || NS == 1 || NS == 4);

  __device__ explicit ByteWeights(const LargeThread& thread)
      : thread_(thread), place_((thread.row(0) * kStageK + 16 * thread.g) | 2 * thread.t) {
    asm volatile("" : "+r"(place_));  // kept, not made again every time
  }

  // Scales are read one stage ahead.
  __device__ void start_scales(int n0, int block) {
    if constexpr (NS > 0) {
      const LargeArgs& a = thread_.args;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        int row = min(n0 + thread_.row(part), a.N - 1);
        if (CODES != kInt8 && a.block_n > 1) row /= a.block_n;
        row_[part] = int64_t{row} * a.scale_stride;
      }
      fetch(block);
    }
  }

  // Makes scale_ that of a stage.
  __device__ void take_scales(int block) {
    if constexpr (NS > 0) {
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < NS; ++i) scale_[part][i] = CODES == kInt8 ? next_[part][i] * 0x10001u : next_[part][i];
      fetch(block + 1);
    }
  }

  // The left operands of half a stage: 64 input features of all rows.
  template <int H>
  __device__ void unpack(uint32_t codes) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint32_t pairs[4][2];
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // Features 2 t and 2 t + 1 of eight; pieces of 16 bytes stand in the order of the 128-byte swizzle.
          const uint32_t at = codes + (place_ ^ (4 * H + s) * 16) + 8 * part * kStageK + 8 * i;
          asm volatile("ld.shared.u16 %0, [%1];" : "=r"(pairs[s][i]) : "r"(at));
        }
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          operand[H][s][part + 2 * i] = bits_of(weights(pairs[s][i], scale_[part][NS == 4 ? 2 * H + s / 2 : 0]));
    }
  }

  uint32_t operand[2][4][4];

 private:
  __device__ static __nv_bfloat162 weights(uint32_t codes, uint32_t scale) {
    if constexpr (CODES == kInt8) {
      return NS == 0 ? int8_pair_64th(codes) : __hmul2(int8_pair(codes), pair_of(scale));
    } else {
      const float2 v = float8_pair<CODES>(codes);
      const float by = NS == 0 ? 1.0f : __uint_as_float(scale);
      return __floats2bfloat162_rn(v.x * by, v.y * by);
    }
  }

  // Bits of the scales of a stage's groups; behind the last group those of the last one.
  __device__ void fetch(int block) {
    const LargeArgs& a = thread_.args;
#pragma unroll
    for (int i = 0; i < NS; ++i) {
      int group = NS == 4 ? (4 * block + i) >> (a.group_size == 64) : block;
      if (NS == 1 && a.group_size != kStageK) group = block * kStageK / a.group_size;
      group = min(group, a.G - 1);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if constexpr (CODES == kInt8) next_[part][i] = static_cast<const uint16_t*>(a.scale)[row_[part] + group];
        else next_[part][i] = static_cast<const uint32_t*>(a.scale)[row_[part] + group];
      }
    }
  }

  const LargeThread& thread_;
  uint32_t place_;  // of this thread's first codes in a stage, before the swizzle
  int64_t row_[2];  // of the scales
  uint32_t scale_[2][NP], next_[2][NP];  // int8: bf16, twice and once; float8: float32
};

}  // namespace ao::large
