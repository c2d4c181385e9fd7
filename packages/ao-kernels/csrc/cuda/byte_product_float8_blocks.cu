#include "cuda/byte_product_launch.cuh"

namespace ao::bytes {

template cudaError_t launch_plan<E4m3, true>(const Launch&);

}  // namespace ao::bytes
