#define large large1
#define AO_DIAG 1
#include "sweep_weight_only.cuh"
namespace ao::large {
const Variant* variants_x(int& n) {
  static const Variant all[] = {variant<LargeTile<4, 2, 64, 4, 2, 1>>(1), variant<LargeTile<4, 2, 16, 8, 2, 0>>(1), variant<LargeTile<4, 2, 128, 5, 1, 1>>(1)};
  return n = sizeof(all) / sizeof(all[0]), all;
}
}
