#include "sweep_weight_only.cuh"
namespace ao::large {
const Variant* variants_a(int& n) {
  static const Variant all[] = {m<2, 4, 2, 2, 2, true>(), m<2, 4, 2, 2, 3, true>(), m<4, 4, 2, 2, 2, true>(), m<4, 2, 4, 2, 2, true>(),
                                m<4, 1, 4, 2, 4, true>(), m<2, 2, 2, 2, 4, true>(), m<2, 2, 4, 2, 2, true>(), m<2, 8, 1, 2, 2, true>()};
  return n = sizeof(all) / sizeof(all[0]), all;
}
}
