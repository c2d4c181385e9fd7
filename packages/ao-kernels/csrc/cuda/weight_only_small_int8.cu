#include "cuda/weight_only_launch.cuh"

namespace ao::small {

template cudaError_t launch<kInt8>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);

}  // namespace ao::small
