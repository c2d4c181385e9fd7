#include "sweep_weight_only.cuh"
namespace ao::large {
const Variant* variants_p(int& n) {
  static const Variant all[] = {
      variant<LargeTile<4, 1, 64, 3, 3, 1, true>>(),  variant<LargeTile<4, 2, 64, 4, 2, 1, true>>(),  variant<LargeTile<4, 2, 128, 5, 1, 1, true>>(),
      variant<LargeTile<4, 3, 128, 4, 1, 1, true>>(), variant<LargeTile<4, 2, 256, 3, 1, 1, true>>(), variant<LargeTile<4, 2, 32, 6, 2, 1, true>>(),
      variant<LargeTile<4, 4, 64, 6, 1, 1, true>>()};
  return n = sizeof(all) / sizeof(all[0]), all;
}
}
