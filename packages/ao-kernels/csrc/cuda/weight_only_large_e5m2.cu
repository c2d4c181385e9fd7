#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {

template cudaError_t launch_groups<kE5m2, 0>(const Launch&);
template cudaError_t launch_groups<kE5m2, 1>(const Launch&);

}  // namespace ao::large
