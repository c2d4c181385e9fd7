#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {

template cudaError_t launch_groups<4, 1>(const Launch&);

}  // namespace ao::large
