#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {

template cudaError_t launch_groups<kE4m3, 0>(const Launch&);
template cudaError_t launch_groups<kE4m3, 1>(const Launch&);
template cudaError_t launch_groups<kE4m3, 4>(const Launch&);

}  // namespace ao::large
