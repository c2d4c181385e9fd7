#include "sweep_weight_only.cuh"
namespace ao::large {
extern const Variant kVariantsB[];
const Variant kVariantsB[] = {
    variant<LargeTile<4, 1, 64, 3, 3, 1>>(), variant<LargeTile<4, 2, 64, 4, 2, 1>>(), variant<LargeTile<4, 4, 64, 6, 1, 1>>(),
    variant<LargeTile<4, 2, 128, 5, 1, 1>>(), variant<LargeTile<4, 3, 128, 4, 1, 1>>(), variant<LargeTile<4, 2, 128, 2, 2, 1>>(),
    variant<LargeTile<4, 4, 128, 4, 1, 1>>(), variant<LargeTile<4, 2, 256, 3, 1, 1>>(),
};
}
