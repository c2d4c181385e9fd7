#include "cuda/weight_only_launch.cuh"

namespace ao::small {

template cudaError_t launch<kE4m3>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);
template cudaError_t launch<kE5m2>(const LinearArgs&, const Device&, const Plan&, cudaStream_t);

}  // namespace ao::small
