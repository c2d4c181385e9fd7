#include "cuda/cast_tiles.cuh"

namespace ao::casts {

cudaError_t cast_row_blocks(const Cast& a, int multiprocessors, cudaStream_t stream) { return start<Scales::row_blocks>(a, multiprocessors, stream); }

}  // namespace ao::casts
