#include "sweep_weight_only.cuh"
namespace ao::large {
const Variant* variants_e(int& n) {
  static const Variant all[] = {m<2, 4, 2, 4, 2, true>(), m<4, 4, 2, 4, 1, true>(), m<2, 2, 2, 4, 4, true>(), m<2, 4, 2, 4, 2, false>(),
                                m<4, 4, 1, 4, 3, false>(), m<2, 2, 4, 4, 2, true>(), m<2, 8, 1, 4, 2, false>(),
                                m<2, 4, 1, 8, 3, false>(), m<4, 4, 1, 8, 2, false>(), m<2, 4, 2, 8, 2, false>(), m<4, 4, 2, 8, 1, false>()};
  return n = sizeof(all) / sizeof(all[0]), all;
}
}
