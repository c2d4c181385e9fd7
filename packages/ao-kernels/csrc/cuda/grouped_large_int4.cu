#include "cuda/grouped_large.cuh"

namespace ao::large {

template cudaError_t launch_grouped<4, 0>(const GroupedLaunch&);
template cudaError_t launch_grouped<4, 1>(const GroupedLaunch&);

}  // namespace ao::large
