#include "cuda/weight_only_launch.cuh"

namespace ao::small {

template cudaError_t launch<1>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<3>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<5>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<7>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);

}  // namespace ao::small
