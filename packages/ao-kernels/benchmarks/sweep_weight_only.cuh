// Variants of the tile kernel, chosen at run time. Temporary.
#include <cstdio>

#include "cuda/chain.h"
#include "cuda/tensor_map.h"
#include "cuda/weight_only_large_launch.cuh"
#include "cuda/weight_only_mid.cuh"

namespace ao::large {
struct Variant {
  char name[40];
  int bits, rows, tokens, slots, permuted, mid, diagnostic;
  cudaError_t (*launch)(const Launch&);
};
template <class Tile>
Variant variant(int diagnostic = 0) {
  Variant v{"", Tile::CODES, Tile::BN, Tile::BM, Tile::CTAS, Tile::PERM, 0, diagnostic, launch_tile<Tile, false>};
  snprintf(v.name, 40, "%s%sw%dx64 t%d s%d c%d%s", diagnostic ? "ABCDE" + diagnostic - 1 : "", "", Tile::CONSUMERS, Tile::BM, Tile::STAGES,
           Tile::CTAS, Tile::PERM ? " perm" : "");
  if (diagnostic) snprintf(v.name, 40, "%c:w%dx64 t%d s%d c%d", "ABCDE"[diagnostic - 1], Tile::CONSUMERS, Tile::BM, Tile::STAGES, Tile::CTAS);
  return v;
}
template <class T>
cudaError_t launch_mid(const Launch& l) {
  constexpr auto kernel = weight_only_mid<T>;
  if (const cudaError_t error = allow_shared_memory<kernel>(T::kShared)) return error;
  const int tiles = (l.args.M + T::BM - 1) / T::BM * ((l.args.N + T::BN - 1) / T::BN);
  Grid grid(tiles * l.args.split, T::kThreads, T::kShared, l.stream);
  grid.cluster(l.args.split);
  if (l.early) grid.early();
  return grid.start(kernel, l.x_map, l.codes_map, l.args);
}
template <class T>
Variant mid() {
  Variant v{"", 4, T::BN, T::BM, T::CTAS, 0, 1, 0, launch_mid<T>};
  snprintf(v.name, 40, "m%dx16x%dx%d t%d s%d c%d%s", T::F, T::WN, T::WK, T::BM, T::STAGES, T::CTAS, T::EXACT ? " ex" : "");
  return v;
}
constexpr int stages_mid(int f, int wn, int nt, int ctas) {
  const int stage = 16 * f * wn * 64 + 8 * nt * 256;
  return ((228 << 10) / ctas - 2048) / (stage + 16);
}
template <int F, int WN, int WK, int NT, int CTAS, bool EXACT>
Variant m() {
  return mid<MidTile<F, WN, WK, NT, stages_mid(F, WN, NT, CTAS), CTAS, EXACT>>();
}
}  // namespace ao::large
