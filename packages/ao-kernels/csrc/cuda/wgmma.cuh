// wgmma (sm_90a), for N of 16, 32, 64, 128 and 256:
//
//   Wgmma<N>             D(64, N) += A(64, 16) @ B(N, 16).T    bf16, A in registers, float32 sums
//   WgmmaBytes<Kind, N>  D(64, N) += A(64, 32) @ B(N, 32).T    int8 with int32 sums or e4m3 with float32 sums, A in shared memory
//
// In shared memory: rows of 128 bytes under the 128-byte swizzle, 1024-byte aligned groups of 8 rows, K-major.
// D: thread (g = lane / 4, t = lane % 4) of warp w holds rows 16 w + g (d[4 j], d[4 j + 1]) and 16 w + g + 8 (d[4 j + 2], d[4 j + 3])
// of columns 8 j + 2 t and 8 j + 2 t + 1. A in registers: a[0], a[2] are row g, k = 2 t and 2 t + 8 (pairs);
// a[1], a[3] row g + 8.
#pragma once
#include <cstdint>

namespace ao::large {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Descriptor of a tile that starts at a shared-memory address; k advances by adding bytes to the address.
__device__ inline uint64_t b_descriptor(uint32_t address) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

// The same in two steps: the lower half, to which 1 may be added for every 16 bytes, and the whole.
__device__ inline uint32_t descriptor_start(uint32_t address) { return (address & 0x3ffff) >> 4 | 1 << 16; }
__device__ inline uint64_t descriptor_of(uint32_t start) {
  uint64_t whole;
  asm("mov.b64 %0, {%1, %2};" : "=l"(whole) : "r"(start), "n"(1 << 30 | 64));
  return whole;
}

// The kinds of operands: what the instruction calls them, and its sums.
struct Int8 {
  using Sum = int32_t;
};
struct E4m3 {
  using Sum = float;
};

// Operands d[i] to d[i + 7], and their numbers.
#define AO_D8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define AO_D16(c, i) AO_D8(c, i), AO_D8(c, i + 8)
#define AO_D32(c, i) AO_D16(c, i), AO_D16(c, i + 16)
#define AO_D64(c, i) AO_D32(c, i), AO_D32(c, i + 32)
#define AO_D128(c, i) AO_D64(c, i), AO_D64(c, i + 64)
#define AO_S8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define AO_S16 AO_S8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define AO_S32 \
  AO_S16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AO_S64                                                                                    \
  AO_S32                                                                                          \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "  \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AO_S128                                                                                   \
  AO_S64                                                                                          \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "  \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "    \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "    \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define AO_INT(x) "+r"(x)
#define AO_FLOAT(x) "+f"(x)

template <int N>
struct Wgmma;

template <class Kind, int N>
struct WgmmaBytes;

// R: registers of D, N / 2. The numbers of the operands behind them follow. accumulate 0: D is set, not added to.
#define AO_WGMMA(N, R, A0, A1, A2, A3, B, P)                                                                           \
  template <>                                                                                                          \
  struct Wgmma<N> {                                                                                                    \
    __device__ static inline void run(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int accumulate) {             \
      asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                   "k16.f32.bf16.bf16 {" AO_S##R "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0;}"  \
                   : AO_D##R(AO_FLOAT, 0)                                                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                             \
    }                                                                                                                  \
  }
AO_WGMMA(16, 8, 8, 9, 10, 11, 12, 13);
AO_WGMMA(32, 16, 16, 17, 18, 19, 20, 21);
AO_WGMMA(64, 32, 32, 33, 34, 35, 36, 37);
AO_WGMMA(128, 64, 64, 65, 66, 67, 68, 69);
AO_WGMMA(256, 128, 128, 129, 130, 131, 132, 133);

#define AO_WGMMA_BYTES(KIND, N, R, A, B, P, CONSTRAINT, TYPES, TAIL)                                              \
  template <>                                                                                               \
  struct WgmmaBytes<KIND, N> {                                                                              \
    __device__ static inline void run(KIND::Sum (&d)[R], uint64_t a, uint64_t b, int accumulate) {          \
      asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N         \
                   "k32." TYPES " {" AO_S##R "}, %" #A ", %" #B ", p" TAIL ";}"                             \
                   : AO_D##R(CONSTRAINT, 0)                                                                 \
                   : "l"(a), "l"(b), "r"(accumulate));                                                      \
    }                                                                                                       \
  }
#define AO_WGMMAS_BYTES(KIND, CONSTRAINT, TYPES, TAIL)                       \
  AO_WGMMA_BYTES(KIND, 16, 8, 8, 9, 10, CONSTRAINT, TYPES, TAIL);            \
  AO_WGMMA_BYTES(KIND, 32, 16, 16, 17, 18, CONSTRAINT, TYPES, TAIL);         \
  AO_WGMMA_BYTES(KIND, 64, 32, 32, 33, 34, CONSTRAINT, TYPES, TAIL);         \
  AO_WGMMA_BYTES(KIND, 128, 64, 64, 65, 66, CONSTRAINT, TYPES, TAIL);        \
  AO_WGMMA_BYTES(KIND, 256, 128, 128, 129, 130, CONSTRAINT, TYPES, TAIL)

AO_WGMMAS_BYTES(Int8, AO_INT, "s32.s8.s8", "");
AO_WGMMAS_BYTES(E4m3, AO_FLOAT, "f32.e4m3.e4m3", ", 1, 1");

#undef AO_WGMMAS_BYTES
#undef AO_WGMMA_BYTES
#undef AO_WGMMA
#undef AO_FLOAT
#undef AO_INT
#undef AO_S128
#undef AO_S64
#undef AO_S32
#undef AO_S16
#undef AO_S8
#undef AO_D128
#undef AO_D64
#undef AO_D32
#undef AO_D16
#undef AO_D8

}  // namespace ao::large
