// A step of an optimizer for a list of parameters; ao_kernels/ops/adam_step.py and lion_step.py define it, ao_core/moments.py the formats.
#pragma once
#include <cstdint>

#include "types.h"

namespace ao {

enum class MomentFormat : int8_t { bits8, bits4, e4m3, full };

// What is done with the moments: two; the second one and the largest of it; one.
enum class StepRule : int8_t { adam, amsgrad, lion };

template <StepRule RULE>
constexpr int kMomentsOf = RULE == StepRule::lion ? 1 : RULE == StepRule::adam ? 2 : 3;

constexpr int kStepScalars = 8;

// One parameter. The first moment is signed, others are not.
struct StepTensor {
  void* p;
  const void* g;
  void* values[3];   // codes, blocks of n elements in a row, or float32 where the format is full
  float* scales[3];
  int64_t numel;
  int64_t offset;    // of the first element in the whole parameter, for random bits
  float scalars[kStepScalars];  // the columns of the op's `scalars`
  uint32_t key;      // of random bits
  uint32_t dither;   // of the first element
  bool aligned;      // everything that is not codes begins at a multiple of 16 bytes
};

// What all parameters of a call have in common.
struct StepOptions {
  DType p_dtype, g_dtype;
  MomentFormat format;
  StepRule rule;
  int n;  // elements that share a scale
  bool decoupled, maximize, stochastic;
  bool dithered;  // both moments, of 4 bits
};

// A map of ao_core/moments.py: bits of a cell's place in its segment, bits of the code without its sign, the summand d, the largest value.
struct Companding {
  int cell_bits, width;
  float bias;
  double top;
};
template <MomentFormat F, bool SIGNED>
constexpr Companding kCompanding = F == MomentFormat::bits8   ? (SIGNED ? Companding{4, 7, 2.0625f, 501.9375} : Companding{4, 8, 2.0f, 129022.0})
                                   : F == MomentFormat::bits4 ? (SIGNED ? Companding{1, 3, 2.0f, 22.0} : Companding{2, 4, 1.9375f, 26.0625})
                                                              : Companding{0, 0, 0.0f, 448.0};
// What the f of a code is above its cell's lower end, and what is added to bits of f before a code is cut off: half a cell here or there.
template <MomentFormat F, bool SIGNED>
constexpr uint32_t kToValue = F == MomentFormat::bits8 ? 1u << (22 - kCompanding<F, SIGNED>.cell_bits) : 0;
template <MomentFormat F, bool SIGNED>
constexpr uint32_t kToNearest = F == MomentFormat::bits4 ? 1u << (22 - kCompanding<F, SIGNED>.cell_bits) : 0;

// The scale of a block as a share of its peak; a dithered one leaves room above the largest f (ao_core/moments.py).
template <MomentFormat F, bool SIGNED, bool DITHERED>
constexpr float kInvTop = static_cast<float>((DITHERED ? 1.0 + 0x1p-21 : 1.0) / kCompanding<F, SIGNED>.top);

// A dither is the upper 23 - cell_bits bits of a word; the words of elements in a row are this far apart.
constexpr uint32_t kDitherOfElement = 0xc13fa9a9u, kTwo = 0x40000000u;  // bits of 2.0f
// What words of a moment are multiplied with.
template <bool SIGNED>
constexpr uint32_t kDitherOf = SIGNED ? 0xa30ed527u : 1u;

constexpr float kSmallestE4m3 = 0x1p-9f, kLargestE4m3 = 448.0f;

}  // namespace ao
