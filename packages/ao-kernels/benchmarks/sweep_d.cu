#include "sweep_weight_only.cuh"
namespace ao::large {
extern const Variant kVariantsD[];
const Variant kVariantsD[] = {
    variant<LargeTile<kInt8, 1, 32, 4, 3, 0>>(), variant<LargeTile<kInt8, 2, 32, 4, 2, 0>>(), variant<LargeTile<kInt8, 1, 16, 4, 4, 0>>(),
    variant<LargeTile<kInt8, 1, 64, 4, 2, 0>>(), variant<LargeTile<kInt8, 2, 64, 3, 2, 0>>(), variant<LargeTile<kInt8, 4, 64, 4, 1, 0>>(),
    variant<LargeTile<kInt8, 2, 128, 4, 1, 0>>(), variant<LargeTile<kInt8, 4, 128, 3, 1, 0>>(), variant<LargeTile<kInt8, 2, 256, 2, 1, 0>>(),
};
}
