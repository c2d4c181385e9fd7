#include "sweep_weight_only.cuh"
namespace ao::large {
const Variant* variants_b(int& n) {
  static const Variant all[] = {
      variant<LargeTile<4, 1, 64, 3, 3, 1>>(),  variant<LargeTile<4, 2, 64, 4, 2, 1>>(),  variant<LargeTile<4, 2, 128, 5, 1, 1>>(),
      variant<LargeTile<4, 3, 128, 4, 1, 1>>(), variant<LargeTile<4, 2, 256, 3, 1, 1>>(), variant<LargeTile<4, 2, 16, 8, 2, 0>>()};
  return n = sizeof(all) / sizeof(all[0]), all;
}
}
