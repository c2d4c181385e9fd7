#include "cuda/grouped_small.cuh"

namespace ao::small {

template cudaError_t launch_grouped<kInt8>(const GroupedLaunch&);
template cudaError_t launch_grouped<kE4m3>(const GroupedLaunch&);

}  // namespace ao::small
