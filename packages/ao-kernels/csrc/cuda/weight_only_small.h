// Weight-only linears of a few tokens on a GPU: what is taken, how the work is cut, and the launch.
// The kernel is in weight_only_small.cuh, its launch in weight_only_launch.cuh; weight_only_small_<codes>.cu compile them.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "linear.h"

namespace ao::small {

constexpr int kMostTokens = 16;

// What a warp keeps in shared memory: `slots` steps of codes of its fragments, 16 rows each, and over them, at the end, its
// sums. See weight_only_small.cuh for wide and narrow; unit_bytes is b, 8 for int8 and float8 codes.
#ifdef __CUDACC__
#define AO_BOTH_SIDES __host__ __device__
#else
#define AO_BOTH_SIDES
#endif
AO_BOTH_SIDES constexpr int piece_bytes(int unit_bytes, bool wide) {
  if (unit_bytes == 8) return wide ? 16 : 8;
  return wide && unit_bytes == 4 ? 16 : wide && unit_bytes % 2 == 0 ? 8 : 4;
}
AO_BOTH_SIDES constexpr int unit_pieces(int unit_bytes) {  // of a narrow unit
  return unit_bytes == 7 ? 3 : unit_bytes == 3 || unit_bytes == 5 || unit_bytes == 6 ? 2 : 1;
}
AO_BOTH_SIDES constexpr int step_bytes(int unit_bytes, bool wide) {
  const int of_row = wide ? 4 * unit_bytes : 4 * unit_pieces(unit_bytes) * piece_bytes(unit_bytes, false);
  return 2 * 32 * of_row;
}
AO_BOTH_SIDES constexpr int slots_of(int unit_bytes, bool wide) {  // 2 KB or more of a fragment under way
  const int bytes = step_bytes(unit_bytes, wide);
  return bytes <= 256 ? 9 : bytes <= 512 ? 5 : 3;
}
AO_BOTH_SIDES constexpr int sum_stride(int fragments) {  // floats of a column of sums: its rows, no bank conflicts
  return 16 * fragments + 4;
}
AO_BOTH_SIDES constexpr int warp_bytes(int unit_bytes, bool wide, int fragments, int columns, int slots) {
  const int ring = slots * fragments * step_bytes(unit_bytes, wide), sums = 4 * sum_stride(fragments) * columns;
  return ring > sums ? ring : sums;
}
// Two fragments read tokens from shared memory once, which is what 16 tokens wait for; bytes wait for memory.
AO_BOTH_SIDES constexpr int fragments_of(int unit_bytes, bool wide, int columns) {
  return wide && columns == 16 && unit_bytes < 8 ? 2 : 1;
}
// Threads of a block, at most: as many as have the registers, 64, 80 or 128 each.
AO_BOTH_SIDES constexpr int most_threads(int unit_bytes, bool wide, int columns) {
  if (wide && columns == 16) return unit_bytes < 8 ? 512 : 768;
  return 1024;
}
#undef AO_BOTH_SIDES

// A block has tiles * splits warps of 16 * fragments rows each; `cluster` blocks share K.
struct Plan {
  int tiles = 0, splits = 0, cluster = 0;
  int blocks = 0;           // that share N, with up to `tiles` tiles each
  int x_row = 0;            // 16-byte pieces from one token to the next in shared memory
  size_t shared_bytes = 0;  // of a block
  bool early = false;       // it may start before the grids in front of it have ended (programmatic dependent launch)
};

// What decides about a launch besides pointers. zero: there are zeros.
struct Shape {
  int64_t M, N, K, group_size;
  int unit_bytes;
  bool zero;
  bool wide() const { return group_size >= K || group_size % 128 == 0; }
  int columns() const { return M > 8 ? 16 : 8; }
  int fragments() const { return fragments_of(unit_bytes, wide(), columns()); }
  int most_warps() const { return most_threads(unit_bytes, wide(), columns()) / 32; }
  bool operator==(const Shape&) const = default;
};

// For shapes of which refusal() says nothing; it costs as much as some launches, so the last ones are remembered.
Plan make_plan(const Shape& shape, const Device& device);
const Plan& remembered_plan(const Shape& shape, const Device& device);

// The most values of x (tokens times input features): they stay in shared memory, that of 8 blocks if there are clusters.
int64_t most_token_values(const Device& device);

// Whether the kernel takes a shape. ao_kernels/cuda/weight.py words the refusals.
bool takes(const Shape& shape, const Device& device);

// For arguments that refusal() has nothing against and whose memory it takes (see takes_memory). BITS: of LinearArgs.
template <int BITS>
cudaError_t launch(const LinearArgs& a, const Device& device, const Plan& plan, cudaStream_t stream);

// 16-byte loads need rows of tokens and weights that start at multiples of 16 bytes; rows of weights do if the first does.
inline bool takes_memory(const LinearArgs& a) {
  return reinterpret_cast<uintptr_t>(a.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0 &&
         a.x_stride % 8 == 0;
}

}  // namespace ao::small
