#include "cuda/grouped_bytes.cuh"

namespace ao::bytes {

template cudaError_t launch_grouped<E4m3>(const GroupedLaunch&);

}  // namespace ao::bytes
