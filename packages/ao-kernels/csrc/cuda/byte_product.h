// Linear of quantized activations and 8-bit weights on Hopper GPUs: one launch for few tokens and two for more, and how the work is cut.
// The kernels are in byte_linear.cuh, quantize_tokens.cu and byte_product.cuh; byte_linear_<codes>.cu and byte_product_<codes>.cu
// compile them.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "cuda/quantize_tokens.h"

namespace ao::bytes {

// With more tokens, the library's product of float8 codes is faster, for scales of rows and tensors.
constexpr int64_t kLibraryTokens = 128;

// Up to so many tokens every CTA quantizes them itself. It reads them twice, M / 16 of the bytes of all weights; see decision 0029.
constexpr int64_t kOneLaunchTokens = 8;
constexpr int64_t kMostOneLaunchTokens = 32;  // that the kernel has tiles for

// In place of what kOneLaunchTokens says, for tests and measurements: 1 or 2 launches, 1 up to kMostOneLaunchTokens; 0 for the rule.
inline int forced_launches = 0;

// Whether one launch of more than 16 tokens has clusters whose CTAs quantize for each other; no rule takes them before they are measured.
inline bool forced_sharing = false;

inline bool one_launch(int64_t M) {
  return M <= (forced_launches == 1 ? kMostOneLaunchTokens : forced_launches == 2 ? 0 : kOneLaunchTokens);
}

// Output features and tokens of a tile (64 by 16, 32 or 64; 128 by 128 or, for int8, 256), and CTAs that share it.
struct Plan {
  int rows, tokens, split;
};

struct Linear {
  TokenArgs tokens;      // codes and scale point into the workspace, if there is one
  const uint8_t* codes;  // (N, K) int8 or e4m3
  const void* scale;     // see ProductArgs in byte_product.cuh
  const void* bias;
  void* y;
  int64_t N;
  int64_t scale_stride, block_n;
  DType scale_dtype, bias_dtype;
};

// Bytes of a workspace for the codes and scales of tokens, which must begin at a multiple of 256; 0 for one launch.
int64_t workspace_bytes(const TokenArgs& a);

// Fills in where codes and scales of the tokens lie.
void place_tokens(TokenArgs& a, void* workspace);

Plan make_plan(int64_t M, int64_t N, int64_t K, bool float8, const Device& device);

// Why nothing here runs on this device, or "".
const char* device_refusal(const Device& device);

// Whether the kernels take these shapes and addresses.
bool takes(const Linear& linear);

cudaError_t launch(const Linear& linear, const Device& device, cudaStream_t stream);

}  // namespace ao::bytes
