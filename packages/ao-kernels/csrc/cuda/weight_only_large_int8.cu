#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {

template cudaError_t launch_groups<kInt8, 0>(const Launch&);
template cudaError_t launch_groups<kInt8, 1>(const Launch&);
template cudaError_t launch_groups<kInt8, 4>(const Launch&);

}  // namespace ao::large
