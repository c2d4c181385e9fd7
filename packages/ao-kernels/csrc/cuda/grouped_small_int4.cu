#include "cuda/grouped_small.cuh"

namespace ao::small {

template cudaError_t launch_grouped<4>(const GroupedLaunch&);

}  // namespace ao::small
