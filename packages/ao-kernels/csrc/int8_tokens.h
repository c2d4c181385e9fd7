// Tokens as int8 codes, what the int8_dynamic_* kernels multiply: x ~ (code - zero) * scale, with one scale and
// one zero a token. Bit for bit ao_core.numerics.quantize_tokens.
#pragma once
#include <cstdint>

#include "isa.h"
#include "types.h"

namespace ao {

// x: K adjacent elements. Symmetric: codes in [-127, 127] and zero = 0, else codes in [-128, 127]. A token that holds
// NaN or inf gets zero codes and a NaN scale.
using QuantizeToken = void(const void* x, DType dtype, int64_t K, bool symmetric, int8_t* codes,
                           float* scale, float* zero);

#ifdef AO_ISA_NAMESPACE
namespace AO_ISA_NAMESPACE {
QuantizeToken quantize_token;
}
#endif

}  // namespace ao
