#include "cuda/cast_tiles.cuh"

namespace ao::casts {

cudaError_t cast_squares(const Cast& a, int multiprocessors, cudaStream_t stream) { return start<Scales::squares>(a, multiprocessors, stream); }

}  // namespace ao::casts
