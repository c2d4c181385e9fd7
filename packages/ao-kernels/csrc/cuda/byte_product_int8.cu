#include "cuda/byte_product_launch.cuh"

namespace ao::bytes {

template cudaError_t launch_plan<Int8, false>(const Launch&);

}  // namespace ao::bytes
