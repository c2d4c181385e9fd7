// The launch of grouped_small.cuh.
#pragma once
#include "cuda/experts.h"
#include "cuda/weight_only_small.h"

namespace ao::small {

struct ExpertStrides {
  int64_t scale_bytes, bias_bytes;  // from one expert's to the next one's
};

// `one`: of expert 0, M: the most tokens of a tile.
struct GroupedLaunch {
  LinearArgs one;
  Experts experts;
  ExpertStrides strides;
  Plan plan;
  int shared_limit;
  cudaStream_t stream;
};

// For shapes that takes() takes. BITS: of LinearArgs.
template <int BITS>
cudaError_t launch_grouped(const GroupedLaunch& l);

}  // namespace ao::small
