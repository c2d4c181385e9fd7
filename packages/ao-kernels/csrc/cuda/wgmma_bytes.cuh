// wgmma (sm_90a) with both operands of bytes in shared memory: D(64, N) += A(64, 32) @ B(N, 32).T, int32 sums of int8 or float32 sums of
// float8 products.
//
// A, B: rows of 128 bytes under the 128-byte swizzle, 1024-byte aligned groups of 8 rows, K-major. D: as in wgmma.cuh.
#pragma once
#include "cuda/wgmma.cuh"

namespace ao::large {

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

template <class Kind, int N>
struct WgmmaBytes;

// R: registers of D, N / 2; A, B, P: the numbers of the operands behind them. accumulate 0: D is set, not added to.
#define AO_WGMMA(KIND, N, R, A, B, P, CONSTRAINT, TYPES, TAIL)                                              \
  template <>                                                                                               \
  struct WgmmaBytes<KIND, N> {                                                                              \
    __device__ static inline void run(KIND::Sum (&d)[R], uint64_t a, uint64_t b, int accumulate) {          \
      asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N         \
                   "k32." TYPES " {" AO_S##R "}, %" #A ", %" #B ", p" TAIL ";}"                             \
                   : AO_D##R(CONSTRAINT, 0)                                                                 \
                   : "l"(a), "l"(b), "r"(accumulate));                                                      \
    }                                                                                                       \
  }
#define AO_WGMMAS(KIND, CONSTRAINT, TYPES, TAIL)                       \
  AO_WGMMA(KIND, 16, 8, 8, 9, 10, CONSTRAINT, TYPES, TAIL);            \
  AO_WGMMA(KIND, 32, 16, 16, 17, 18, CONSTRAINT, TYPES, TAIL);         \
  AO_WGMMA(KIND, 64, 32, 32, 33, 34, CONSTRAINT, TYPES, TAIL);         \
  AO_WGMMA(KIND, 128, 64, 64, 65, 66, CONSTRAINT, TYPES, TAIL);        \
  AO_WGMMA(KIND, 256, 128, 128, 129, 130, CONSTRAINT, TYPES, TAIL)

AO_WGMMAS(Int8, AO_INT, "s32.s8.s8", "");
AO_WGMMAS(E4m3, AO_FLOAT, "f32.e4m3.e4m3", ", 1, 1");

#undef AO_WGMMAS
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
