#include "cuda/byte_linear_launch.cuh"

namespace ao::bytes {

template cudaError_t launch_linear<Int8, false>(const LinearLaunch&);

}  // namespace ao::bytes
