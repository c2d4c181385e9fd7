// int4 codes as the left operand of weight_only_large.cuh.
#pragma once
#include "cuda/weight_only_large_tile.cuh"

namespace ao::large {

// A code in the last bits of a bf16, code * 2**-133, is what a fused multiply-add takes; so is one four bits higher, for exponents of
// 0 and 1 have the same step. A byte twice and one mask are two codes thus, the second times 16.
//
// Weights stand in the products as (code - zero) * scale / 16, and sums are multiplied by 16 at the end: scales below 1/4, which are
// nearly all, can then be multiplied by 2**129, and
//   (code - 8) * scale / 16 = (code * 2**-133) * (scale * 2**129) - scale / 2
// is rounded once. With zeros (code - zero) / 64 comes first. Scales that are too small or too large for this take more instructions.
constexpr uint32_t kCodeScale = 0x7d007f00;  // 2**127, and 2**123 for the second code: both give code / 64

// A byte twice in a word: its two codes as said above.
__device__ inline __nv_bfloat162 small_pair(uint32_t word, uint32_t selector) {
  uint32_t pair;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(pair) : "r"(word), "r"(selector));  // __byte_perm masks its selector first
  asm("lop3.b32 %0, %0, 0x00f0000f, 0, 0xc0;" : "+r"(pair));
  return pair_of(pair);
}

// (code - 8) / 16.
__device__ inline __nv_bfloat162 less_eight_sixteenth(uint32_t word, uint32_t selector) {
  const uint32_t both = __byte_perm(word, 0, selector) & 0xff;
  const uint32_t spread = (both * 0x1001u & 0x000f000fu) | 0x41004100u;
  return __hsub2(pair_of(spread), __nv_bfloat162(8.5f, 8.5f));
}

template <class Tile, bool ZERO>
class Int4Weights {
 public:
  static constexpr int NS = Tile::NS, NP = NS == 0 ? 1 : NS;
  static constexpr float kFactor = NS == 0 ? 64.0f : 16.0f;  // of the sums

  __device__ explicit Int4Weights(const LargeThread& thread)
      : thread_(thread), a_(thread.args), selector_(0x4040 | thread.t * 0x0101),
        place_(thread.row(0) * stage_code_bytes(4) | (thread.g >> 1 & 3) * 16) {
    asm volatile("" : "+r"(selector_), "+r"(place_));  // kept, not made again every time
  }

  // Scales and zeros are read two stages ahead.
  __device__ void start_scales(int n0, int block) {
    if constexpr (NS > 0) {
#pragma unroll
      for (int part = 0; part < 2; ++part) row_[part] = int64_t{min(n0 + thread_.row(part), a_.N - 1)} * a_.scale_stride;
      fetch(0, block);
      fetch(1, block + 1);
    }
  }

  // Makes scale_ and offset_ those of a stage.
  __device__ void take_scales(int block) {
    if constexpr (NS > 0) {
      bool small = true;
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < NS; ++i) {
          const uint32_t scale = scales_[0][part][i];
          if (ZERO) small = small && (scale & 0x7fff) < 0x7e00;  // 2**125
          else small = small && (scale & 0x7fff) - 0x0100 < 0x3d80;  // from 2**-125 to 1/4
          scale_[part][i] = scale * 0x10001u;
          scales_[0][part][i] = scales_[1][part][i];
          if (ZERO) {
            offset_[part][i] = zeros_[0][part][i];
            zeros_[0][part][i] = zeros_[1][part][i];
          }
        }
      fetch(1, block + 2);
      small_ = __all_sync(0xffffffff, small);
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < NS; ++i) {
          if constexpr (ZERO) {
            const float zero = __uint_as_float(offset_[part][i] << 16);
            const __nv_bfloat16 offset = __float2bfloat16(small_ ? zero * (-1.0f / 64) : (zero - 8.0f) * (1.0f / 16));
            offset_[part][i] = bits_of(__nv_bfloat162(offset, offset));
            if (small_) scale_[part][i] = bits_of(__hmul2(pair_of(scale_[part][i]), __nv_bfloat162(4.0f, 4.0f)));
          } else if (small_) {
            offset_[part][i] = (scale_[part][i] ^ 0x80008000) - 0x00800080;  // -scale / 2
            scale_[part][i] += 0x3e804080;                                     // scale * 2**129, scale * 2**125
          }
        }
    }
  }

  // The left operands of half a stage: 64 input features of all rows.
  template <int H>
  __device__ void unpack(uint32_t codes) {
    if (NS == 0 || small_) unpack_as<H, true>(codes);
    else unpack_as<H, false>(codes);
  }

  template <int H, bool SMALL>
  __device__ void unpack_as(uint32_t codes) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint32_t words[8];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t at = codes + (place_ ^ (2 * H + i) * 16) + 8 * part * stage_code_bytes(4);  // 64-byte swizzle
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[4 * i]), "=r"(words[4 * i + 1]), "=r"(words[4 * i + 2]), "=r"(words[4 * i + 3])
                     : "r"(at));
      }
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int group = NS == 4 ? 2 * H + s / 2 : NS == 2 ? H : 0;
          operand[H][s][part + 2 * i] =
              bits_of(weights<SMALL>(words[2 * s + i], pair_of(scale_[part][group]), pair_of(offset_[part][group])));
        }
    }
  }

  uint32_t operand[2][4][4];

 private:
  template <bool SMALL>
  __device__ __nv_bfloat162 weights(uint32_t word, __nv_bfloat162 scale, __nv_bfloat162 offset) const {
    if constexpr (NS == 0) return __hfma2(small_pair(word, selector_), pair_of(kCodeScale), __nv_bfloat162(-0.125f, -0.125f));
    else if constexpr (SMALL && !ZERO) return __hfma2(small_pair(word, selector_), scale, offset);
    else if constexpr (SMALL) return __hmul2(__hfma2(small_pair(word, selector_), pair_of(kCodeScale), offset), scale);
    __nv_bfloat162 v = less_eight_sixteenth(word, selector_);
    if (ZERO) v = __hsub2(v, offset);
    return __hmul2(v, scale);
  }

  // Bits of the scales and zeros of a stage's groups; behind the last group those of the last one.
  __device__ void fetch(int to, int block) {
    const auto* scale = static_cast<const uint16_t*>(a_.scale);
    const auto* zero = static_cast<const uint16_t*>(a_.zero);
#pragma unroll
    for (int i = 0; i < NS; ++i) {
      int group = NS * block + i;
      if (NS == 1 && a_.group_size != kStageK) group = static_cast<uint32_t>(block) / static_cast<uint32_t>(a_.group_size / kStageK);
      group = min(group, a_.G - 1);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        scales_[to][part][i] = scale[row_[part] + group];
        if (ZERO) zeros_[to][part][i] = zero[row_[part] + group];
      }
    }
  }

  const LargeThread& thread_;
  const LargeArgs& a_;
  uint32_t selector_, place_;  // place_: of its first codes in a stage, before the swizzle
  int64_t row_[2];             // of the scales
  uint32_t scales_[2][2][NP], zeros_[2][2][NP];  // bf16, of the next two stages
  bool small_ = true;
  uint32_t scale_[2][NP], offset_[2][NP];  // bf16, twice
};

}  // namespace ao::large
