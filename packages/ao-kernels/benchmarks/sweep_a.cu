#include "sweep_weight_only.cuh"
namespace ao::large {
extern const Variant kVariantsA[];
const Variant kVariantsA[] = {
    variant<LargeTile<4, 1, 16, 6, 4, 1>>(), variant<LargeTile<4, 1, 16, 8, 3, 1>>(), variant<LargeTile<4, 2, 16, 8, 2, 1>>(),
    variant<LargeTile<4, 1, 32, 4, 4, 1>>(), variant<LargeTile<4, 1, 32, 5, 3, 1>>(), variant<LargeTile<4, 2, 32, 6, 2, 1>>(),
    variant<LargeTile<4, 4, 32, 8, 1, 1>>(), variant<LargeTile<4, 4, 16, 10, 1, 1>>(),
};
}
