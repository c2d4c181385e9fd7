// Weight-only linears of a few tokens on a GPU: what is taken, how the work is cut, and the launch.
// The kernel is in weight_only_small.cuh; weight_only_small_<codes>.cu compile it.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "linear.h"

namespace ao::small {

constexpr int kMostTokens = 16;

// A block has tiles * splits warps of 16 rows each; `cluster` blocks share K. tiles 0: the tokens fit no block.
struct Plan {
  int tiles = 0, splits = 0, cluster = 0;
  int x_row = 0;            // 16-byte pieces from one token to the next in shared memory
  size_t shared_bytes = 0;  // of a block
};

// What decides about a launch besides pointers. zero: there are zeros.
struct Shape {
  int64_t M, N, K, group_size;
  bool zero;
  bool operator==(const Shape&) const = default;
};

// For shapes of which refusal() says nothing; it costs about as much as a launch, so the last ones are remembered.
Plan make_plan(const Shape& shape, const Device& device);
const Plan& remembered_plan(const Shape& shape, const Device& device);

// Why the kernel does not take a shape, or nullptr. Whether its tokens fit into shared memory is for the plan to say.
const char* refusal(const Shape& shape, const Device& device);

// For arguments that refusal() has nothing against and whose memory it takes (see takes_memory). BITS 0: int8 codes.
template <int BITS>
cudaError_t launch(const LinearArgs& a, const Device& device, const Plan& plan, cudaStream_t stream);

// 16-byte loads need rows of tokens and weights that start at multiples of 16 bytes; rows of weights do if the first does.
inline bool takes_memory(const LinearArgs& a) {
  return reinterpret_cast<uintptr_t>(a.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0 &&
         a.x_stride % 8 == 0;
}

}  // namespace ao::small
