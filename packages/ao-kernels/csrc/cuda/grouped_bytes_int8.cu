#include "cuda/grouped_bytes.cuh"

namespace ao::bytes {

template cudaError_t launch_grouped<Int8>(const GroupedLaunch&);

}  // namespace ao::bytes
