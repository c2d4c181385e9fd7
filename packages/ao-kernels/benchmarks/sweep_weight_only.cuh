// Variants of the tile kernel, chosen at run time. Temporary.
#include "cuda/chain.h"
#include "cuda/tensor_map.h"
#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {
struct Variant {
  int bits, consumers, tokens, stages, ctas;
  cudaError_t (*launch)(const Launch&);
};
template <class Tile>
Variant variant() {
  return {Tile::CODES, Tile::CONSUMERS, Tile::BM, Tile::STAGES, Tile::CTAS, launch_tile<Tile, false>};
}
}  // namespace ao::large
