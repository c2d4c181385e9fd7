#define large large2
#define AO_DIAG 2
#include "sweep_weight_only.cuh"
namespace ao::large {
extern const Variant kVariantsX2[];
const Variant kVariantsX2[] = {variant<LargeTile<4, 2, 64, 4, 2, 1>>(), variant<LargeTile<4, 4, 64, 6, 1, 1>>(), variant<LargeTile<4, 2, 16, 8, 2, 1>>()};
}
