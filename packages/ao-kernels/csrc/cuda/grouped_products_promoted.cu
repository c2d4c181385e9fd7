#include "cuda/grouped_products.cuh"

namespace ao::bytes {

template cudaError_t launch_products<true>(const ProductLaunch&);

}  // namespace ao::bytes
