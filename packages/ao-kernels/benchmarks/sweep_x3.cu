#define large large3
#define AO_DIAG 3
#include "sweep_weight_only.cuh"
namespace ao::large {
extern const Variant kVariantsX3[];
const Variant kVariantsX3[] = {variant<LargeTile<4, 2, 64, 4, 2, 1>>(), variant<LargeTile<4, 4, 64, 6, 1, 1>>(), variant<LargeTile<4, 2, 16, 8, 2, 1>>()};
}
