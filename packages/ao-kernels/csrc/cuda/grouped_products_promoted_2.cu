#include "cuda/grouped_products.cuh"

namespace ao::bytes {

template cudaError_t launch_products<true, 2>(const ProductLaunch&);

}  // namespace ao::bytes
