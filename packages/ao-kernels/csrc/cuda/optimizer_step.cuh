// A step of Adam, AdamW or Lion in one pass over memory. A warp has 256 elements at a time, eight a thread: 16 bytes of bfloat16. Warps are
// many and small, and hide each other's loads: an H200 took 3.5 ms for 0.998e9 parameters with blocks of eight warps, 80 registers a thread and
// the next tile loaded early, where Triton's 32 single warps of 63 registers a multiprocessor took 2.5.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/moments.cuh"
#include "cuda/optimizer_grid.h"

namespace ao {
namespace {

// Eight elements of T as words.
template <class T>
struct Eight {
  static constexpr int kWords = 2 * sizeof(T);
  uint32_t word[kWords];
};

template <int WORDS>
__device__ inline void load_words(const void* from, uint32_t (&word)[WORDS]) {
  if constexpr (WORDS == 1) {
    word[0] = *static_cast<const uint32_t*>(from);
  } else if constexpr (WORDS == 2) {
    const uint2 x = *static_cast<const uint2*>(from);
    word[0] = x.x, word[1] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) {
      const uint4 x = static_cast<const uint4*>(from)[i / 4];
      word[i] = x.x, word[i + 1] = x.y, word[i + 2] = x.z, word[i + 3] = x.w;
    }
  }
}

template <int WORDS>
__device__ inline void store_words(void* to, const uint32_t (&word)[WORDS]) {
  if constexpr (WORDS == 1) {
    *static_cast<uint32_t*>(to) = word[0];
  } else if constexpr (WORDS == 2) {
    *static_cast<uint2*>(to) = {word[0], word[1]};
  } else {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) static_cast<uint4*>(to)[i / 4] = {word[i], word[i + 1], word[i + 2], word[i + 3]};
  }
}

// WHOLE: all eight are there, at a multiple of 16 bytes.
template <bool WHOLE, class T, int WORDS>
__device__ inline void load_eight(const void* from, int64_t at, int64_t left, uint32_t (&word)[WORDS]) {
  const T* const x = static_cast<const T*>(from) + at;
  if (WHOLE) return load_words(x, word);
#pragma unroll
  for (int i = 0; i < WORDS; ++i) word[i] = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= left) continue;
    if constexpr (sizeof(T) == 4) word[i] = reinterpret_cast<const uint32_t*>(x)[i];
    else word[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(x)[i]) << i % 2 * 16;
  }
}

template <bool WHOLE, class T, int WORDS>
__device__ inline void store_eight(void* to, int64_t at, int64_t left, const uint32_t (&word)[WORDS]) {
  T* const x = static_cast<T*>(to) + at;
  if (WHOLE) return store_words(x, word);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= left) continue;
    if constexpr (sizeof(T) == 4) reinterpret_cast<uint32_t*>(x)[i] = word[i];
    else reinterpret_cast<uint16_t*>(x)[i] = static_cast<uint16_t>(word[i / 2] >> i % 2 * 16);
  }
}

template <class T>
__device__ inline void widen(const Eight<T>& from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = __uint_as_float(from.word[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const uint32_t word = from.word[i / 2];
      x[i] = __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
    } else {
      x[i] = __half2float(__ushort_as_half(static_cast<uint16_t>(from.word[i / 2] >> i % 2 * 16)));
    }
  }
}

template <class T>
__device__ inline Eight<T> narrow(const float (&x)[8]) {
  Eight<T> to;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to.word[i] = __float_as_uint(x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(x[i], x[i + 1]);
        to.word[i / 2] = *reinterpret_cast<const uint32_t*>(&both);
      } else {
        const __half2 both = __floats2half2_rn(x[i], x[i + 1]);
        to.word[i / 2] = *reinterpret_cast<const uint32_t*>(&both);
      }
    }
  }
  return to;
}

__device__ inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Rounds to bfloat16 by the random bits of ao_core/rounding.py; `index` is that of the first element.
__device__ inline Eight<__nv_bfloat16> narrow_randomly(const float (&x)[8], int64_t index, uint32_t key) {
  const uint32_t second = mix(key), odd = static_cast<uint32_t>(index & 1);
  uint32_t bits[8], word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i % 2 == 0 || odd) {  // a word for two elements, or one each where pairs lie across
      const uint64_t pair = static_cast<uint64_t>(index + i) >> 1;
      word = mix(mix(static_cast<uint32_t>(pair) + key) + static_cast<uint32_t>(pair >> 32) + second);
    }
    const uint32_t random = (i + odd) % 2 ? word >> 16 : word & 0xffff;
    const uint32_t plain = __float_as_uint(x[i]);
    bits[i] = (plain & 0x7f800000u) == 0x7f800000u ? plain : plain + random;
  }
  Eight<__nv_bfloat16> to;
#pragma unroll
  for (int i = 0; i < 8; i += 2) to.word[i / 2] = __byte_perm(bits[i], bits[i + 1], kHighs);
  return to;
}

// The largest of the lanes that have a block together: LANES, a power of two, or `lanes` where that is 0.
template <int LANES>
__device__ inline uint32_t peak_of_lanes(uint32_t peak, int lanes) {
#if __CUDA_ARCH__ >= 800
  if constexpr (LANES == 32) return __reduce_max_sync(~0u, peak);
#endif
  if constexpr (LANES != 0) {
#pragma unroll
    for (int s = 1; s < LANES; s *= 2) peak = max(peak, __shfl_xor_sync(~0u, peak, s));
  } else {
    for (int s = 1; s < lanes; s *= 2) peak = max(peak, __shfl_xor_sync(~0u, peak, s));
  }
  return peak;
}

__device__ inline float root_of(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// For divisors below 2**126.
__device__ inline float quotient_of(float x, float divisor) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(divisor));
  return y;
}

// What a thread reads of a tile.
template <class P, class G, MomentFormat F, int MOMENTS>
struct Read {
  Eight<P> p;
  Eight<G> g;
  Codes<F> codes[MOMENTS];
  float scale[MOMENTS];
};

template <MomentFormat F>
constexpr int kCodeBits = F == MomentFormat::bits4 ? 4 : F == MomentFormat::full ? 32 : 8;

// WHOLE: every tile of the warp is there to its end, at multiples of 16 bytes. LANES: threads that have a block, or 0 where `lanes` says it.
template <class P, class G, MomentFormat F, StepRule RULE, bool WHOLE, int LANES>
struct Thread {
  static constexpr int kMoments = kMomentsOf<RULE>;
  const StepTensor& t;
  const StepOptions& o;
  int lane, lanes, shift;  // lanes that share a scale; n is 1 << shift
  int64_t stored;          // elements that have codes: numel, filled up to whole blocks
  float scalars[kStepScalars];

  __device__ void read(int64_t at, Read<P, G, F, kMoments>& r) const {
    const int64_t left = t.numel - at;
    load_eight<WHOLE, P>(t.p, at, left, r.p.word);
    load_eight<WHOLE, G>(t.g, at, left, r.g.word);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) {
      if constexpr (F == MomentFormat::full) {
        load_eight<WHOLE, float>(t.values[k], at, left, r.codes[k].word);
      } else {
        r.codes[k] = {};
        r.scale[k] = 0;
        if (!WHOLE && at >= stored) continue;
        load_words(static_cast<const uint8_t*>(t.values[k]) + at / 8 * kCodeBits<F>, r.codes[k].word);
        r.scale[k] = t.scales[k][at >> shift];
      }
    }
  }

  template <bool SIGNED, bool DITHERED = false>
  __device__ void write(int k, const float (&x)[8], int64_t at) const {
    const int64_t left = t.numel - at;
    if constexpr (F == MomentFormat::full) {
      store_eight<WHOLE, float>(t.values[k], at, left, encode<F, SIGNED, false>(x, 0, 0).word);
    } else {
      const uint32_t peak = peak_of_lanes<LANES>(peak_of_eight(x), lanes);
      const float scale = moment_scale<F, SIGNED, DITHERED>(peak);
      const uint32_t word = (t.dither + static_cast<uint32_t>(at) * kDitherOfElement) * kDitherOf<SIGNED>;
      Codes<F> codes = encode<F, SIGNED, DITHERED>(x, __frcp_rn(scale), word);
      const uint32_t allowed = peak < 0x7f800000u ? ~0u : 0;
#pragma unroll
      for (int i = 0; i < Codes<F>::kWords; ++i) codes.word[i] &= allowed;
      if (!WHOLE && at >= stored) return;
      store_words(static_cast<uint8_t*>(t.values[k]) + at / 8 * kCodeBits<F>, codes.word);
      if (lane % (LANES ? LANES : lanes) == 0) t.scales[k][at >> shift] = scale;
    }
  }

  __device__ void compute(int64_t at, const Read<P, G, F, kMoments>& r) const {
    const int64_t left = t.numel - at;
    float p[8], g[8], m[8];
    widen(r.p, p);
    widen(r.g, g);
    decode<F, true>(r.codes[0], r.scale[0], m);
    const float decay = scalars[0];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (o.maximize) g[i] = -g[i];
      if (o.decoupled) p[i] = __fmul_rn(p[i], decay);
      else g[i] = __fadd_rn(g[i], __fmul_rn(p[i], decay));
    }
    if constexpr (RULE == StepRule::lion) lion(at, left, p, g, m);
    else adam(at, left, r, p, g, m);
    if constexpr (std::is_same_v<P, __nv_bfloat16>) {
      if (o.stochastic) return store_eight<WHOLE, P>(t.p, at, left, narrow_randomly(p, t.offset + at, t.key).word);
    }
    store_eight<WHOLE, P>(t.p, at, left, narrow<P>(p).word);
  }

  __device__ void adam(int64_t at, int64_t left, const Read<P, G, F, kMoments>& r, float (&p)[8], float (&g)[8], float (&m)[8]) const {
    const float beta1 = scalars[1], rest1 = scalars[2], beta2 = scalars[3], rest2 = scalars[4], correction = scalars[5], eps = scalars[6];
    float v[8];
    decode<F, false>(r.codes[1], r.scale[1], v);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      m[i] = __fadd_rn(__fmul_rn(m[i], beta1), __fmul_rn(g[i], rest1));
      v[i] = __fadd_rn(__fmul_rn(v[i], beta2), __fmul_rn(__fmul_rn(g[i], g[i]), rest2));
    }
    if (!WHOLE) {
#pragma unroll
      for (int i = 0; i < 8; ++i) m[i] = i < left ? m[i] : 0, v[i] = i < left ? v[i] : 0;
    }
    if (F == MomentFormat::bits4 && o.dithered) {
      write<true, F == MomentFormat::bits4>(0, m, at);
      write<false, F == MomentFormat::bits4>(1, v, at);
    } else {
      write<true>(0, m, at);
      write<false>(1, v, at);
    }
    if constexpr (RULE == StepRule::amsgrad) {
      float u[8];
      decode<F, false>(r.codes[2], r.scale[2], u);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = isnan(u[i]) || u[i] > v[i] ? u[i] : v[i];
      if (!WHOLE) {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = i < left ? v[i] : 0;
      }
      write<false>(2, v, at);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) p[i] = __fmaf_rn(quotient_of(m[i], __fmaf_rn(root_of(v[i]), correction, eps)), -scalars[7], p[i]);
  }

  // p - lr * sign(beta1 * m + (1 - beta1) * g); m = beta2 * m + (1 - beta2) * g
  __device__ void lion(int64_t at, int64_t left, float (&p)[8], float (&g)[8], float (&m)[8]) const {
    const float beta1 = scalars[1], rest1 = scalars[2], beta2 = scalars[3], rest2 = scalars[4], lr = scalars[5];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float mixed = __fadd_rn(__fmul_rn(m[i], beta1), __fmul_rn(g[i], rest1));
      const float step = mixed > 0 ? lr : mixed < 0 ? -lr : mixed * 0;  // NaN stays NaN
      p[i] = __fadd_rn(p[i], -step);
      m[i] = __fadd_rn(__fmul_rn(m[i], beta2), __fmul_rn(g[i], rest2));
      if (!WHOLE && i >= left) m[i] = 0;
    }
    write<true>(0, m, at);
  }
};

template <class P, class G, MomentFormat F, StepRule RULE, bool WHOLE, int LANES>
__device__ inline void run(const StepGrid& a, int which, int64_t begin) {
  const StepTensor& t = a.tensors[which];
  const int n = a.options.n, lane = threadIdx.x;
  Thread<P, G, F, RULE, WHOLE, LANES> thread = {t, a.options, lane, n / 8, 31 - __clz(n), (t.numel + n - 1) / n * n, {}};
#pragma unroll
  for (int i = 0; i < kStepScalars; ++i)
    thread.scalars[i] = a.device_scalars ? static_cast<float>(a.device_scalars[which * a.device_scalars_stride + i]) : t.scalars[i];
#pragma unroll 1
  for (int tile = 0; tile < kStepTiles; ++tile, begin += kStepTile) {
    if (!WHOLE && begin >= t.numel) return;
    Read<P, G, F, kMomentsOf<RULE>> r;
    thread.read(begin + lane * 8, r);
    thread.compute(begin + lane * 8, r);
  }
}

// As many warps a multiprocessor as it can have blocks, where their registers do.
template <class P, class G, MomentFormat F, StepRule RULE>
constexpr int kWarps = RULE == StepRule::amsgrad || sizeof(P) + sizeof(G) > 4 ? 20 : F == MomentFormat::bits4 ? 28 : 32;

template <class P, class G, MomentFormat F, StepRule RULE>
__global__ void __launch_bounds__(kStepThreads, kWarps<P, G, F, RULE>) optimizer_step(const __grid_constant__ StepGrid a) {
  int low = 0, high = a.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.first[middle] <= static_cast<int>(blockIdx.x)) low = middle;
    else high = middle - 1;
  }
  constexpr int kLanes = F == MomentFormat::bits4 ? 16 : 32;  // of the usual sizes of blocks
  const StepTensor& t = a.tensors[low];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - a.first[low]) * kStepChunk;
  const bool whole = t.aligned && begin + kStepChunk <= t.numel;
  if (whole && a.options.n == 8 * kLanes) run<P, G, F, RULE, true, kLanes>(a, low, begin);
  else if (whole) run<P, G, F, RULE, true, F == MomentFormat::full ? kLanes : 0>(a, low, begin);
  else run<P, G, F, RULE, false, 0>(a, low, begin);
}

// Not by grid.h, which tells later grids that those in front of them write no weights.
template <class P, class G, MomentFormat F, StepRule RULE>
cudaError_t start(const StepGrid& grid, int64_t blocks, cudaStream_t stream) {
  optimizer_step<P, G, F, RULE><<<static_cast<unsigned>(blocks), kStepThreads, 0, stream>>>(grid);
  return cudaGetLastError();
}

template <class P, class G, MomentFormat F>
cudaError_t start(const StepGrid& grid, int64_t blocks, cudaStream_t stream) {
  switch (grid.options.rule) {
    case StepRule::adam: return start<P, G, F, StepRule::adam>(grid, blocks, stream);
    case StepRule::amsgrad: return start<P, G, F, StepRule::amsgrad>(grid, blocks, stream);
    default: return start<P, G, F, StepRule::lion>(grid, blocks, stream);
  }
}

template <MomentFormat F>
cudaError_t start(const StepGrid& grid, int64_t blocks, cudaStream_t stream) {
  const bool float_gradients = grid.options.g_dtype == DType::f32;
  switch (grid.options.p_dtype) {
    case DType::bf16:
      return float_gradients ? start<__nv_bfloat16, float, F>(grid, blocks, stream)
                             : start<__nv_bfloat16, __nv_bfloat16, F>(grid, blocks, stream);
    case DType::f16: return start<__half, __half, F>(grid, blocks, stream);
    default:
      return float_gradients ? start<float, float, F>(grid, blocks, stream) : start<float, __nv_bfloat16, F>(grid, blocks, stream);
  }
}

}  // namespace
}  // namespace ao
