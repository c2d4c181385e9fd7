#include "cuda/grouped_large.cuh"

namespace ao::large {

template cudaError_t launch_grouped<kInt8, 0>(const GroupedLaunch&);
template cudaError_t launch_grouped<kInt8, 1>(const GroupedLaunch&);
template cudaError_t launch_grouped<kE4m3, 0>(const GroupedLaunch&);
template cudaError_t launch_grouped<kE4m3, 1>(const GroupedLaunch&);

}  // namespace ao::large
