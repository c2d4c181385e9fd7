// Weight-only linear for many tokens on Hopper: y[m, n] = sum_k x[m, k] * w[n, k] + bias[n], bfloat16, float32 sums.
//
// A CTA makes a tile of 128 output features by BM tokens. A producer warp has the copy engine fill a ring of stages, each
// 128 input features of codes (64 bytes a row) and activations; two warpgroups read their rows' codes, turn them into
// bf16 in registers, where wgmma takes its left operand, and multiply with the tokens in shared memory, which are its
// narrow side. Two register sets alternate, so that codes of one half stage can be unpacked while the tensor cores
// work on the other; how far they overlap is in docs/decisions/0013.
//
// Weights are (code - zero) * scale rounded to bf16, as dequantizing before a matrix product gives them; a scale that spans the
// row is applied to the float32 sums instead, so that those weights are exact.
//
// With SPLIT > 1 the CTAs of a cluster share a tile, each with its part of K, and add the float32 sums up through
// distributed shared memory in the order of their ranks: bits repeat, and no workspace is needed.
#pragma once
#include "cuda/floats.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace ao::large {

constexpr int kStageK = 128;            // input features a stage
constexpr int kStageCodeBytes = 64;     // of a row
constexpr int kConsumers = 2;           // warpgroups
constexpr int kLargeThreads = 128 * (kConsumers + 1);
constexpr int kEpilogueTokens = 32;

struct LargeArgs {
  const void* scale;   // (N or 1, G) bf16, or float32 when it spans the row
  const void* zero;    // like scale, or nullptr
  const void* bias;    // (N) or nullptr
  __nv_bfloat16* y;    // (M, N)
  int M, N, K, G;
  int scale_stride;    // G, or 0 where all rows share the scales
  int group_size;
  DType scale_dtype, bias_dtype;
  bool vector_scales;  // rows of scales and zeros begin at multiples of 16 bytes
};

// SPLIT: CTAs that share a tile. CTAS: of a multiprocessor. NS: groups in 128 input features (1, 2, 4), or 0 where a group spans the row.
template <int BM_, int STAGES_, int SPLIT_, int CTAS_, int NS_>
struct LargeTile {
  static constexpr int BM = BM_, STAGES = STAGES_, SPLIT = SPLIT_, CTAS = CTAS_, NS = NS_;
  // Registers a thread, moved from the producer's warpgroup to the consumers': 168 or 80 at launch.
  static constexpr int kProducerRegisters = CTAS == 1 ? 40 : 24, kConsumerRegisters = CTAS == 1 ? 232 : 104;
  static constexpr int BN = 64 * kConsumers;
  static constexpr int kCodes = BN * kStageCodeBytes;
  static constexpr int kHalfX = BM * 128;           // 64 input features of all tokens
  static constexpr int kStage = kCodes + 2 * kHalfX;
  static constexpr int kEpilogue = SPLIT == 1 ? kConsumers * kEpilogueTokens * 128 : 0;
  static constexpr int kPitch = BN + 4;             // floats; 2 * kPitch % 32 == 8: no bank conflicts
  static constexpr int kRing = STAGES * kStage;
  static constexpr int kShared = 1024 + kRing + kEpilogue + 16 * STAGES;
  static_assert(SPLIT == 1 || BM * kPitch * 4 <= kRing);
  static_assert(kCodes % 1024 == 0 && kHalfX % 1024 == 0);
};

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

__device__ inline uint32_t bits_of(__nv_bfloat162 v) { return *reinterpret_cast<uint32_t*>(&v); }
__device__ inline __nv_bfloat162 pair_of(uint32_t bits) { return *reinterpret_cast<__nv_bfloat162*>(&bits); }

template <class Tile, bool ZERO>
class LargeConsumer {
 public:
  static constexpr int BM = Tile::BM, NS = Tile::NS;
  static constexpr int NP = NS == 0 ? 1 : NS;

  __device__ LargeConsumer(const LargeArgs& a, int warpgroup)
      : a_(a), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32 % 4), warpgroup_(warpgroup), t_(lane_ % 4), g_(lane_ / 4),
        selector_(0x4440 | t_) {}

  // Row of the tile that this thread holds: g of its warp's sixteen, or g + 8.
  __device__ int row(int part) const { return warpgroup_ * 64 + warp_ * 16 + g_ + 8 * part; }

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
        const uint32_t at = codes + r * kStageCodeBytes + ((2 * H + i) ^ (r >> 1 & 3)) * 16;  // 64-byte swizzle
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
          operand_[H][s][part + 2 * i] = bits_of(v);
        }
    }
  }

  template <int H>
  __device__ void multiply(uint32_t x, int accumulate) {
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s)
        Wgmma<BM>::run(sum_, operand_[H][s], b_descriptor(x + H * Tile::kHalfX + 32 * s), accumulate | s);
    wgmma_commit();
  }

  // Row-wide scale, zero is refused there, and bias.
  __device__ void finish(int n0) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int n = min(n0 + row(part), a_.N - 1);
      float scale = 1 / kWeightFactor;
      if constexpr (NS == 0) scale = load_float(a_.scale, a_.scale_dtype, int64_t{n} * a_.scale_stride);
      const float bias = a_.bias && Tile::SPLIT == 1 ? load_float(a_.bias, a_.bias_dtype, n) : 0.0f;
#pragma unroll
      for (int j = 0; j < BM / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& v = sum_[4 * j + 2 * part + i];
          v = fmaf(v, scale, bias);
        }
    }
  }

  // Through shared memory, 32 tokens at a time, so that stores are 128 bytes long.
  __device__ void store(int m0, int n0, uint32_t buffer) {
    buffer += warpgroup_ * kEpilogueTokens * 128;
    const int thread = threadIdx.x % 128;
    const bool aligned = a_.N % 8 == 0;
#pragma unroll
    for (int c = 0; c < BM / kEpilogueTokens; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* d = sum_ + (c * kEpilogueTokens + half * 16) / 2;
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = bits_of(__floats2bfloat162_rn(d[2 * i], d[2 * i + 1]));
        const int token = half * 16 + lane_ / 16 * 8 + lane_ % 8, piece = warp_ * 2 + lane_ / 8 % 2;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         buffer + token * 128 + (piece ^ (token & 7)) * 16),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                     : "memory");
      }
      asm volatile("bar.sync %0, 128;" ::"r"(warpgroup_ + 1) : "memory");
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = (i * 128 + thread) / 8, piece = thread % 8;
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(buffer + token * 128 + (piece ^ (token & 7)) * 16));
        const int m = m0 + c * kEpilogueTokens + token, n = n0 + warpgroup_ * 64 + piece * 8;
        if (m >= a_.M || n >= a_.N) continue;
        __nv_bfloat16* y = a_.y + int64_t{m} * a_.N + n;
        if (aligned) {
          *reinterpret_cast<uint4*>(y) = v;
        } else {
          const __nv_bfloat16* each = reinterpret_cast<const __nv_bfloat16*>(&v);
#pragma unroll
          for (int e = 0; e < 8; ++e)
            if (n + e < a_.N) y[e] = each[e];
        }
      }
      asm volatile("bar.sync %0, 128;" ::"r"(warpgroup_ + 1) : "memory");
    }
  }

  // parts[token][row] of this CTA.
  __device__ void store_part(uint32_t parts, bool any) const {
#pragma unroll
    for (int j = 0; j < BM / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + 2 * t_ + i % 2;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(parts + 4 * (token * Tile::kPitch + row(i / 2))),
                     "f"(any ? sum_[4 * j + i] : 0.0f)
                     : "memory");
      }
  }

 private:
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

  const LargeArgs& a_;
  int lane_, warp_, warpgroup_, t_, g_;
  uint32_t selector_;
  uint4 scales_[2][2], zeros_[2][2];  // of the eight groups in use and of the next eight
  int loaded_;                                // the eight groups in use
  bool small_;
  uint32_t scale_[2][NP], offset_[2][NP];  // bf16, twice
  uint32_t operand_[2][4][4];
  float sum_[BM / 2];
};

// The sums of a tile, each CTA of the cluster a share of them.
template <class Tile>
__device__ void add_parts(const LargeArgs& a, uint32_t parts, int rank, int tiles_m) {
  const int tile = blockIdx.x / Tile::SPLIT, m0 = tile % tiles_m * Tile::BM, n0 = tile / tiles_m * Tile::BN;
  constexpr int kFours = Tile::BN / 4, kThreads = 128 * kConsumers;
  for (int i = rank * kThreads + threadIdx.x; i < Tile::BM * kFours; i += Tile::SPLIT * kThreads) {
    const int token = i / kFours, n = n0 + i % kFours * 4, m = m0 + token;
    if (m >= a.M || n >= a.N) continue;
    const uint32_t at = parts + 4 * (token * Tile::kPitch + i % kFours * 4);
    float4 part[Tile::SPLIT];
#pragma unroll
    for (int r = 0; r < Tile::SPLIT; ++r) part[r] = load_remote(at, r);
    float sum[4] = {part[0].x, part[0].y, part[0].z, part[0].w};
#pragma unroll
    for (int r = 1; r < Tile::SPLIT; ++r)
      sum[0] += part[r].x, sum[1] += part[r].y, sum[2] += part[r].z, sum[3] += part[r].w;
    __nv_bfloat16* y = a.y + int64_t{m} * a.N + n;
    __nv_bfloat16 out[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float bias = a.bias ? load_float(a.bias, a.bias_dtype, min(n + e, a.N - 1)) : 0.0f;
      out[e] = __float2bfloat16(sum[e] + bias);
    }
    if (a.N % 4 == 0) {
      *reinterpret_cast<uint2*>(y) = *reinterpret_cast<uint2*>(out);
    } else {
      for (int e = 0; e < 4; ++e)
        if (n + e < a.N) y[e] = out[e];
    }
  }
}

template <class Tile, bool ZERO>
__global__ void __launch_bounds__(kLargeThreads, Tile::CTAS)
weight_only_large(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap codes_map, const LargeArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // other architectures have no wgmma; device_refusal keeps their devices away
  extern __shared__ uint8_t memory[];
  constexpr int STAGES = Tile::STAGES, SPLIT = Tile::SPLIT;
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u;
  const uint32_t buffer = ring + Tile::kRing, full = buffer + Tile::kEpilogue, empty = full + 8 * STAGES;
  const int tiles_m = (a.M + Tile::BM - 1) / Tile::BM, tiles_n = (a.N + Tile::BN - 1) / Tile::BN;
  const int n_tiles = tiles_m * tiles_n, rank = blockIdx.x % SPLIT;
  const int n_blocks = (a.K + kStageK - 1) / kStageK, per_split = (n_blocks + SPLIT - 1) / SPLIT;
  const int first = min(rank * per_split, n_blocks), last = min(first + per_split, n_blocks);

  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4 * kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kProducerRegisters));
    if (threadIdx.x == 128 * kConsumers) {
      int stage = 0, phase = 0;
      for (int tile = blockIdx.x / SPLIT; tile < n_tiles; tile += gridDim.x / SPLIT) {
        const int m0 = tile % tiles_m * Tile::BM, n0 = tile / tiles_m * Tile::BN;
        for (int block = first; block < last; ++block) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(full + 8 * stage, Tile::kStage);
          const uint32_t at = ring + stage * Tile::kStage;
          load_box(at, &codes_map, block * kStageCodeBytes, n0, full + 8 * stage);
          load_box(at + Tile::kCodes, &x_map, block * kStageK, m0, full + 8 * stage);
          load_box(at + Tile::kCodes + Tile::kHalfX, &x_map, block * kStageK + 64, m0, full + 8 * stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
    if constexpr (SPLIT > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kConsumerRegisters));
    LargeConsumer<Tile, ZERO> consumer(a, warpgroup);
    int stage = 0, phase = 0;
    const auto release = [&](int s) {
      if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * s);
    };
    for (int tile = blockIdx.x / SPLIT; tile < n_tiles; tile += gridDim.x / SPLIT) {
      const int m0 = tile % tiles_m * Tile::BM, n0 = tile / tiles_m * Tile::BN;
      consumer.start_scales(n0, first);
      int before = -1;
      for (int block = first; block < last; ++block) {
        consumer.take_scales(n0, block);
        barrier_wait(full + 8 * stage, phase);
        const uint32_t codes = ring + stage * Tile::kStage, x = codes + Tile::kCodes;
        consumer.template unpack<0>(codes);
        consumer.template multiply<0>(x, block > first);
        wgmma_wait<1>();
        if (before >= 0) release(before);
        consumer.template unpack<1>(codes);
        consumer.template multiply<1>(x, 1);
        wgmma_wait<1>();
        before = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      wgmma_wait<0>();
      if (before >= 0) release(before);
      consumer.finish(n0);
      if constexpr (SPLIT == 1) consumer.store(m0, n0, buffer);
      else {
        asm volatile("bar.sync 3, %0;" ::"n"(128 * kConsumers) : "memory");  // the other warpgroup has read its last stage
        consumer.store_part(ring, first < last);
      }
    }
    if constexpr (SPLIT > 1) {
      cluster_sync();
      add_parts<Tile>(a, ring, rank, tiles_m);
      cluster_sync();  // the others may still read this CTA's memory
    }
  }
#endif
}

}  // namespace ao::large
