// int4 codes as the left operand of weight_only_large.cuh.
#pragma once
#include "cuda/weight_only_large_tile.cuh"

namespace ao::large {

// Weights stand in the products as (code - zero) * scale / 16, and sums are multiplied by 16 at the end: scales below 1/4, which are
// nearly all, can then be multiplied by 2**129. A code in the last bits of a bf16 is code * 2**-133, and one fused multiply-add makes
//   (code - 8) * scale / 16 = (code * 2**-133) * (scale * 2**129) - scale / 2
// rounded once. Other scales take a subtraction and a multiplication.
constexpr float kSmallScale = 0.25f, kWeightFactor = 1.0f / 16;

// Byte t of a word: its two codes in the last bits of two bf16, under `exponent`.
template <uint32_t exponent>
__device__ inline __nv_bfloat162 spread_pair(uint32_t word, uint32_t selector) {
  const uint32_t both = __byte_perm(word, 0, selector) * 0x1001u;  // the upper code reaches bit 16
  uint32_t spread;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(spread) : "r"(both), "n"(exponent));
  return *reinterpret_cast<__nv_bfloat162*>(&spread);
}

// code - 8.
__device__ inline __nv_bfloat162 less_eight(uint32_t word, uint32_t selector) {
  return __hsub2(spread_pair<0x43004300>(word, selector), __nv_bfloat162(136.0f, 136.0f));
}

// (code - 8) / 16.
__device__ inline __nv_bfloat162 less_eight_sixteenth(uint32_t word, uint32_t selector) {
  return __hsub2(spread_pair<0x41004100>(word, selector), __nv_bfloat162(8.5f, 8.5f));
}

template <class Tile, bool ZERO>
class Int4Weights {
 public:
  static constexpr int NS = Tile::NS, NP = NS == 0 ? 1 : NS;
  static constexpr float kFactor = NS == 0 ? 1.0f : 1 / kWeightFactor;  // of the sums

  __device__ explicit Int4Weights(const LargeThread& thread) : thread_(thread), a_(thread.args), selector_(0x4440 | thread.t) {}

  // Scales and zeros are read eight groups at a time, one such vector ahead.
  __device__ void start_scales(int n0, int block) {
    if constexpr (NS > 0) {
      loaded_ = first_group(block) / 8;
      fetch(n0, loaded_);
      advance(n0);
    }
  }

  // Makes scale_ and offset_ those of a stage.
  __device__ void take_scales(int n0, int block) {
    if constexpr (NS > 0) {
      const int first = first_group(block);
      if (first / 8 > loaded_) {
        ++loaded_;
        advance(n0);
      }
      bool small = !ZERO;
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < NS; ++i) {
          const uint32_t both = element(scales_[0][part], first % 8 + i);
          small = small && (both & 0x7fff) - 0x0100 < 0x3d80;  // from 2**-125 to 1/4
          scale_[part][i] = both;
          if (ZERO) {
            const float zero = __uint_as_float(element(zeros_[0][part], first % 8 + i) << 16);
            const __nv_bfloat16 offset = __float2bfloat16((zero - 8.0f) * kWeightFactor);
            offset_[part][i] = bits_of(__nv_bfloat162(offset, offset));
          }
        }
      small_ = __all_sync(0xffffffff, small);
      if constexpr (ZERO) return;
      if (!small_) return;
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < NS; ++i) {
          offset_[part][i] = (scale_[part][i] ^ 0x80008000) - 0x00800080;  // -scale / 2
          scale_[part][i] += 0x40804080;                                     // scale * 2**129
        }
    }
  }

  // The left operands of half a stage: 64 input features of all rows.
  template <int H>
  __device__ void unpack(uint32_t codes) {
    if (NS > 0 && !ZERO && small_) unpack_as<H, true>(codes);
    else unpack_as<H, false>(codes);
  }

  template <int H, bool SMALL>
  __device__ void unpack_as(uint32_t codes) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int r = row(part);
      uint32_t words[8];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t at = codes + r * stage_code_bytes(4) + ((2 * H + i) ^ (r >> 1 & 3)) * 16;  // 64-byte swizzle
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[4 * i]), "=r"(words[4 * i + 1]), "=r"(words[4 * i + 2]), "=r"(words[4 * i + 3])
                     : "r"(at));
      }
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t word = words[2 * s + i];
          __nv_bfloat162 v;
          if constexpr (NS == 0) {
            v = less_eight(word, selector_);
          } else {
            const int group = NS == 4 ? 2 * H + s / 2 : NS == 2 ? H : 0;
            const __nv_bfloat162 scale = pair_of(scale_[part][group]), offset = pair_of(offset_[part][group]);
            if constexpr (SMALL) {
              v = __hfma2(spread_pair<0>(word, selector_), scale, offset);
            } else {
              v = less_eight_sixteenth(word, selector_);
              if (ZERO) v = __hsub2(v, offset);
              v = __hmul2(v, scale);
            }
          }
          operand[H][s][part + 2 * i] = bits_of(v);
        }
    }
  }

  uint32_t operand[2][4][4];

 private:
  __device__ int row(int part) const { return thread_.row(part); }
  __device__ int first_group(int block) const { return NS == 1 ? block * kStageK / a_.group_size : block * NS; }

  // Element i of eight bf16, twice.
  __device__ static uint32_t element(const uint4& v, int i) {
    const uint32_t word = i < 4 ? (i < 2 ? v.x : v.y) : (i < 6 ? v.z : v.w);
    return __byte_perm(word, 0, i % 2 ? 0x3232 : 0x1010);
  }

  __device__ uint4 eight(const void* data, int n, int g) const {
    const auto* p = static_cast<const __nv_bfloat16*>(data) + int64_t{n} * a_.scale_stride;
    if (a_.vector_scales && g + 8 <= a_.G) return *reinterpret_cast<const uint4*>(p + g);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = bits_of(__nv_bfloat162(p[min(g + 2 * i, a_.G - 1)], p[min(g + 2 * i + 1, a_.G - 1)]));
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  __device__ void fetch(int n0, int eighth) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int n = min(n0 + row(part), a_.N - 1);
      scales_[1][part] = eight(a_.scale, n, 8 * eighth);
      if (ZERO) zeros_[1][part] = eight(a_.zero, n, 8 * eighth);
    }
  }

  // The next eight groups come into use, and those behind them are fetched.
  __device__ void advance(int n0) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      scales_[0][part] = scales_[1][part];
      if (ZERO) zeros_[0][part] = zeros_[1][part];
    }
    if (8 * (loaded_ + 1) < a_.G) fetch(n0, loaded_ + 1);
  }

  const LargeThread& thread_;
  const LargeArgs& a_;
  uint32_t selector_;
  uint4 scales_[2][2], zeros_[2][2];  // of the eight groups in use and of the next eight
  int loaded_;                                // the eight groups in use
  bool small_;
  uint32_t scale_[2][NP], offset_[2][NP];  // bf16, twice
};

}  // namespace ao::large
