// Instruction sets. Every kernel source csrc/<op>.cpp is compiled once per instruction set with
// AO_ISA_NAMESPACE set to its name, and once more without it for the Python binding.
//
// Inside the per-ISA part: everything lives in `namespace ao::AO_ISA_NAMESPACE` and no header of
// the C++ library with inline functions is used (only <cstdint>, <cstring>, <cmath>, intrinsics): the linker
// keeps one copy of an inline function, and it must not be the one compiled for AVX-512.
#pragma once

#define AO_IS_generic 1
#define AO_IS_avx2 2
#define AO_IS_avx512 3
#define AO_IS_neon 4
#define AO_CAT_(a, b) a##b
#define AO_CAT(a, b) AO_CAT_(a, b)
#ifdef AO_ISA_NAMESPACE
#define AO_ISA AO_CAT(AO_IS_, AO_ISA_NAMESPACE)
#endif

#ifdef AO_HAVE_AVX512
#define AO_AVX512_(...) __VA_ARGS__
#else
#define AO_AVX512_(...)
#endif
#ifdef AO_HAVE_AVX2
#define AO_AVX2_(...) __VA_ARGS__
#else
#define AO_AVX2_(...)
#endif
#ifdef AO_HAVE_NEON
#define AO_NEON_(...) __VA_ARGS__
#else
#define AO_NEON_(...)
#endif

namespace ao {
enum class Isa { generic, avx2, avx512, neon };
}

// At file scope of the binding part: declares `type name` in every compiled instruction set and
// defines `ao::name##_for(isa)`, which gives the best compiled function for that set. `type` is a
// function type: `using Gemv = void(const Args&);  AO_BY_ISA(Gemv, int4_linear)`.
#define AO_BY_ISA(type, name)                                                      \
  namespace ao {                                                                   \
  namespace generic { type name; }                                                 \
  AO_AVX2_(namespace avx2 { type name; })                                          \
  AO_AVX512_(namespace avx512 { type name; })                                      \
  AO_NEON_(namespace neon { type name; })                                          \
  static inline type* name##_for(Isa isa) {                                        \
    switch (isa) {                                                                 \
      AO_AVX512_(case Isa::avx512 : return avx512::name;)                          \
      AO_AVX2_(case Isa::avx2 : return avx2::name;)                                \
      AO_NEON_(case Isa::neon : return neon::name;)                                \
      default: return generic::name;                                               \
    }                                                                              \
  }                                                                                \
  }
