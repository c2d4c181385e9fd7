// Binding of the linears whose activations become 8-bit codes on the way, on torch's current stream of the device.
#pragma once
#include "cuda/byte_product.h"
#include "cuda/weight_only_call.h"

namespace ao {

constexpr int64_t kWholeRow = int64_t{1} << 40;  // a group_size

// given: the scale of all tokens, (1, 1) float32, or nullptr.
inline PyObject* run_bytes(const char* op, LinearCall& call, TokenScales scales, PyObject* given = nullptr) {
  const LinearArgs& a = call.args;
  Tensor given_scale{};
  if (given && (!read_tensor(given, &given_scale, DeviceType::cuda) || given_scale.device != call.x.device ||
                given_scale.dtype != DType::f32 || !given_scale.is_matrix(1, 1)))
    return not_implemented();
  const Device& at = *device(call.x.device);
  bytes::Linear linear{
      .tokens = {.x = a.x, .codes = nullptr, .scale = nullptr, .given = given ? given_scale.as<float>() : nullptr,
                 .peaks = nullptr,
                 .M = a.M, .K = a.K, .x_stride = a.x_stride, .scale_stride = 0, .x_dtype = a.x_dtype,
                 .float8 = a.bits == kE4m3, .scales = scales, .chained = false},
      .codes = a.codes, .scale = a.scale, .bias = a.bias, .y = nullptr, .N = a.N,
      .scale_stride = a.block_n >= a.N && a.G == 1 ? 0 : a.scale_stride, .block_n = a.block_n,
      .scale_dtype = a.scale_dtype, .bias_dtype = a.bias_dtype};
  if (*bytes::device_refusal(at) || !bytes::takes(linear)) return not_implemented();
  if (a.M == 0 || a.N == 0) return call.new_result();
  const auto run = [&] {
    return run_on_device(op, call, [&](const LinearArgs& args, const Device& device, cudaStream_t stream) {
      linear.y = args.y;
      return bytes::launch(linear, device, stream);
    });
  };
  if (bytes::one_launch(linear.tokens)) return run();
  const Workspace workspace(bytes::workspace_bytes(linear.tokens), DeviceType::cuda, call.x.device);
  if (!workspace.data()) return nullptr;
  bytes::place_tokens(linear.tokens, workspace.data());
  return run();
}

}  // namespace ao
