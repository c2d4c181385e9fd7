#include "cuda/cast_tiles.cuh"

namespace ao::casts {

cudaError_t cast_vectors(const Cast& a, int multiprocessors, cudaStream_t stream) { return start<Scales::vectors>(a, multiprocessors, stream); }

}  // namespace ao::casts
