#include "cuda/grouped_large.cuh"

namespace ao::large {

template cudaError_t launch_grouped<4, 2>(const GroupedLaunch&);
template cudaError_t launch_grouped<4, 4>(const GroupedLaunch&);

}  // namespace ao::large
