#include "cuda/weight_only_launch.cuh"

namespace ao::small {

template cudaError_t launch<2>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<6>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<8>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);

}  // namespace ao::small
