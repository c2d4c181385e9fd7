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

constexpr int64_t kMostOneLaunchTokens = 16;  // the tile of byte_linear.cuh

// Up to so many tokens every CTA quantizes them itself. It is for the host, 12 to 14 us a call instead of 19 to 22: the device takes 0.94 to 1.08
// times as long up to here, and with more tokens longer and longer. H200, decision 0029.
inline int64_t one_launch_tokens(TokenScales scales) {
  return scales == TokenScales::block ? 4 : scales == TokenScales::tensor ? 2 : 1;
}

// In place of what one_launch_tokens() says, for tests and measurements: 1 or 2 launches, 1 up to kMostOneLaunchTokens; 0 for the rule.
inline int forced_launches = 0;

inline bool one_launch(const TokenArgs& a) {
  return a.M <= (forced_launches == 1 ? kMostOneLaunchTokens : forced_launches == 2 ? 0 : one_launch_tokens(a.scales));
}

// Output features and tokens of a tile (64 by 16, 32 or 64; 128 by 128 or, for int8, 256), and CTAs that share it.
struct Plan {
  int rows, tokens, split;
};

struct Linear {
  TokenArgs tokens;      // two launches: codes and scale point into the workspace; one: they are nullptr
  const uint8_t* codes;  // (N, K) int8 or e4m3
  const void* scale;     // see ProductArgs in byte_product.cuh
  const void* bias;
  void* y;
  int64_t N;
  int64_t scale_stride, block_n;
  DType scale_dtype, bias_dtype;
};

// Bytes of a workspace for the codes and scales of tokens, which must begin at a multiple of 256.
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
