// Host side of byte_product.cuh and byte_linear.cuh.
#include <climits>

#include "cuda/byte_linear_launch.cuh"
#include "cuda/byte_product_launch.cuh"
#include "cuda/chain.h"
#include "cuda/tensor_map.h"

namespace ao::bytes {

extern template cudaError_t launch_plan<Int8, false>(const Launch&);
extern template cudaError_t launch_plan<E4m3, false>(const Launch&);
extern template cudaError_t launch_plan<E4m3, true>(const Launch&);
extern template cudaError_t launch_linear<Int8, false>(const LinearLaunch&);
extern template cudaError_t launch_linear<E4m3, false>(const LinearLaunch&);
extern template cudaError_t launch_linear<E4m3, true>(const LinearLaunch&);

namespace {

constexpr int64_t kScalePitch = 128;  // columns of block scales: a multiple of every tile's tokens

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Without the codes and scales of tokens.
ProductArgs arguments(const Linear& linear, const Plan& plan) {
  const TokenArgs& t = linear.tokens;
  return {.x_scale = nullptr, .scale = linear.scale, .bias = linear.bias, .y = linear.y,
          .M = static_cast<int>(t.M), .N = static_cast<int>(linear.N), .K = static_cast<int>(t.K),
          .x_scale_stride = 0,
          .scale_stride = static_cast<int>(linear.scale_stride), .block_n = static_cast<int>(linear.block_n),
          .split = plan.split, .scale_dtype = linear.scale_dtype, .bias_dtype = linear.bias_dtype, .y_dtype = t.x_dtype};
}

bool encode_codes(CUtensorMap* map, const Linear& linear, const Plan& plan) {
  const int64_t K = linear.tokens.K;
  return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, linear.codes, K, linear.N, K, kStageK, plan.rows, CU_TENSOR_MAP_SWIZZLE_128B);
}

cudaError_t launch_once(const Linear& linear, const Device& device, cudaStream_t stream) {
  const TokenArgs& t = linear.tokens;
  LinearLaunch l;
  l.plan = make_plan(t.M, linear.N, t.K, t.float8, device);
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  l.args = {.product = arguments(linear, l.plan), .x = t.x, .given = t.given, .x_stride = t.x_stride, .x_dtype = t.x_dtype,
            .scales = t.scales, .chained = device.early_launch && is_chained(stream)};
  if (!encode_codes(&l.codes_map, linear, l.plan)) return cudaErrorInvalidValue;
  if (t.scales == TokenScales::block) return launch_linear<E4m3, true>(l);
  return t.float8 ? launch_linear<E4m3, false>(l) : launch_linear<Int8, false>(l);
}

}  // namespace

int64_t workspace_bytes(const TokenArgs& a) {
  const int64_t scales = a.scales == TokenScales::block    ? (a.K + kStageK - 1) / kStageK * rounded_up(a.M, kScalePitch)
                         : a.scales == TokenScales::tensor ? 1 + a.M
                                                           : a.M;
  return rounded_up(a.M * a.K, 256) + 4 * scales;
}

void place_tokens(TokenArgs& a, void* workspace) {
  a.codes = static_cast<uint8_t*>(workspace);
  a.scale = reinterpret_cast<float*>(a.codes + rounded_up(a.M * a.K, 256));
  a.scale_stride = a.scales == TokenScales::block ? rounded_up(a.M, kScalePitch) : a.scales == TokenScales::tensor ? 0 : 1;
  const bool many = a.scales == TokenScales::tensor && a.M * a.K > kFewTogether;
  a.peaks = many ? reinterpret_cast<uint32_t*>(a.scale + 1) : nullptr;
}

// Rules fitted to an H200: 4096 x 4096, 14336 x 4096 and 4096 x 14336 with 1 to 1024 tokens.
Plan make_plan(int64_t M, int64_t N, int64_t K, bool float8, const Device& device) {
  const int64_t columns = (N + 127) / 128, blocks = (K + kStageK - 1) / kStageK;
  Plan plan{.rows = 128, .tokens = 128, .split = 1};
  if (!float8 && M > 128 && columns * ((M + 255) / 256) >= 100) plan.tokens = 256;
  else if (M <= 64 || (M <= 128 && columns < 64)) plan.rows = 64, plan.tokens = M <= 16 ? 16 : M <= 32 ? 32 : 64;
  if (plan.tokens == 256) return plan;
  const int64_t tiles = (N + plan.rows - 1) / plan.rows * ((M + plan.tokens - 1) / plan.tokens);
  const int64_t least = plan.tokens < 128 ? 16 : 64;  // stages of a CTA, so that adding up does not cost more than it gains
  while (plan.split < 8 && tiles * plan.split * 2 <= device.multiprocessors && blocks >= least * plan.split) plan.split *= 2;
  return plan;
}

const char* device_refusal(const Device& device) {
#ifndef AO_CUDA_SM90A
  return "ao_kernels._cuda was built without architecture 90a, which the products of 8-bit codes need";
#endif
  if (device.capability != 90) return "the products of 8-bit codes need compute capability 9.0";
  return has_tensor_maps() ? "" : "the driver cannot describe tensors to the copy engine";
}

bool takes(const Linear& l) {
  const TokenArgs& t = l.tokens;
  const int64_t x_bytes = dtype_bytes(t.x_dtype);
  if (!quantizes(t.M, t.K) || reinterpret_cast<uintptr_t>(t.x) % 16 || t.x_stride * x_bytes % 16 ||
      reinterpret_cast<uintptr_t>(l.codes) % 16)
    return false;
  // Sums of int8 products must fit into int32, and coordinates into int.
  return (t.float8 || t.K <= INT_MAX / (127 * 128)) && l.N <= INT_MAX - 256 && t.M <= INT_MAX - 256;
}

cudaError_t launch(const Linear& linear, const Device& device, cudaStream_t stream) {
  TokenArgs t = linear.tokens;
  if (!t.codes) return launch_once(linear, device, stream);
  t.chained = device.early_launch && is_chained(stream);
  if (const cudaError_t error = quantize_tokens(t, device.early_launch, stream)) return error;
  Launch l;
  l.plan = make_plan(t.M, linear.N, t.K, t.float8, device);
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  l.args = arguments(linear, l.plan);
  l.args.x_scale = t.scale;
  l.args.x_scale_stride = static_cast<int>(t.scale_stride);
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, t.codes, t.K, t.M, t.K, kStageK, l.plan.tokens,
                  CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_codes(&l.codes_map, linear, l.plan))
    return cudaErrorInvalidValue;
  if (t.scales == TokenScales::block) return launch_plan<E4m3, true>(l);
  return t.float8 ? launch_plan<E4m3, false>(l) : launch_plan<Int8, false>(l);
}

}  // namespace ao::bytes
