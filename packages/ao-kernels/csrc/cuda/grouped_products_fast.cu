#include "cuda/grouped_products.cuh"

namespace ao::bytes {

template cudaError_t launch_products<false>(const ProductLaunch&);

}  // namespace ao::bytes
