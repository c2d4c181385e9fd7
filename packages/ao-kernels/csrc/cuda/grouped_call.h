// Binding of the grouped linears on CUDA tensors: reads and checks the arguments (x, codes, scale, zero, offsets, bias) as linear_call.h does those of
// the linears. x (T, K), codes (E, N, bytes of a row), scale and zero (E or 1, rows, G), offsets (E) int32, bias (E, N).
#pragma once
#include "cuda/grouped_bytes.h"
#include "cuda/grouped_weight_only.h"
#include "cuda/byte_linear_call.h"

namespace ao {

struct GroupedCall {
  GroupedArgs args;
  Tensor x;

  bool read(PyObject* x_object, PyObject* codes_object, PyObject* scale_object, PyObject* zero_object, int bits,
            int64_t group_size, PyObject* offsets_object, PyObject* bias_object, int64_t block_n = 1) {
    Tensor codes, scale, zero, offsets, bias;
    if (!read_tensor(x_object, &x, DeviceType::cuda) || !beside_x(codes_object, &codes) || !beside_x(scale_object, &scale) ||
        !beside_x(offsets_object, &offsets))
      return false;
    if (x.ndim != 2 || !is_activation_dtype(x.dtype) || group_size < 1 || block_n < 1) return false;
    const int64_t T = x.shape[0], K = x.shape[1];
    if (T >= int64_t{1} << 30 || K == 0 || (K > 1 && x.strides[1] != 1) || (T > 1 && x.strides[0] < K)) return false;
    const DType wanted = bits > 0 ? DType::u8 : bits == kInt8 ? DType::i8 : bits == kE4m3 ? DType::e4m3 : DType::e5m2;
    if (codes.ndim != 3 || codes.dtype != wanted || !codes.contiguous()) return false;
    const int64_t E = codes.shape[0], N = codes.shape[1], row_bytes = bits > 0 ? (K + 7) / 8 * bits : K;
    if (E < 1 || E > kMostExperts || codes.shape[2] != row_bytes) return false;
    if (group_size < K && group_size % 8 != 0) return false;
    const int64_t G = (K + group_size - 1) / group_size;
    const bool float8 = bits == kE4m3 || bits == kE5m2;
    if (!float8 && block_n != 1) return false;
    if (block_n >= N) block_n = N > 0 ? N : 1;
    const int64_t scale_rows = (N + block_n - 1) / block_n;
    const auto fits = [&](const Tensor& t) {
      return t.ndim == 3 && t.contiguous() && t.shape[2] == G && (t.shape[0] == E || t.shape[0] == 1) &&
             (t.shape[1] == scale_rows || (!float8 && t.shape[1] == 1));
    };
    if (!fits(scale) || (float8 ? scale.dtype != DType::f32 : !is_scale_dtype(scale.dtype))) return false;
    const bool has_zero = zero_object != Py_None, has_bias = bias_object != Py_None;
    if (has_zero && (!beside_x(zero_object, &zero) || zero.dtype != scale.dtype || !fits(zero) || zero.shape[0] != scale.shape[0] ||
                     zero.shape[1] != scale.shape[1]))
      return false;
    if (has_bias && (!beside_x(bias_object, &bias) || bias.ndim != 2 || bias.shape[0] != E || bias.shape[1] != N || !bias.contiguous() ||
                     !is_activation_dtype(bias.dtype)))
      return false;
    if (offsets.ndim != 1 || offsets.shape[0] != E || offsets.dtype != DType::i32 || !offsets.contiguous()) return false;
    args.one = LinearArgs{
        .x = x.data, .y = nullptr, .codes = codes.as<uint8_t>(), .scale = scale.data, .zero = has_zero ? zero.data : nullptr,
        .bias = has_bias ? bias.data : nullptr, .M = T, .N = N, .K = K, .G = G, .x_stride = T > 1 ? x.strides[0] : K,
        .group_size = group_size < K ? group_size : K, .row_bytes = row_bytes,
        .scale_stride = scale.shape[1] == 1 && N != 1 ? 0 : G, .bits = bits, .n_threads = 0, .x_dtype = x.dtype,
        .scale_dtype = scale.dtype, .bias_dtype = has_bias ? bias.dtype : DType::f32, .block_n = block_n};
    args.experts = {offsets.as<int>(), static_cast<int>(E), static_cast<int>(T)};
    args.scale_bytes = scale.shape[0] == 1 ? 0 : scale.shape[1] * G * dtype_bytes(scale.dtype);
    args.bias_bytes = has_bias ? N * dtype_bytes(bias.dtype) : 0;
    return true;
  }

  PyObject* new_result() {
    const int64_t shape[2] = {args.one.M, args.one.N};
    return new_tensor(2, shape, x.dtype, &args.one.y, DeviceType::cuda, x.device);
  }

  // The result of an op whose kernel `launch(device, stream)` starts.
  template <class Launch>
  PyObject* run(const char* op, Launch&& launch) {
    PyObject* y = new_result();
    if (!y || args.one.M == 0 || args.one.N == 0) return y;
    void* stream;
    CurrentDevice current(x.device);
    if (current_stream(x.device, &stream) && launched(op, launch(*device(x.device), static_cast<cudaStream_t>(stream)))) return y;
    Py_DECREF(y);
    return nullptr;
  }

 private:
  bool beside_x(PyObject* object, Tensor* out) const {
    return read_tensor(object, out, DeviceType::cuda) && out->device == x.device;
  }
};

inline PyObject* run_grouped_weight_only(const char* op, GroupedCall& call) {
  if (!grouped::takes_weight_only(call.args, *device(call.x.device))) return not_implemented();
  return call.run(op, [&](const Device& at, cudaStream_t stream) { return grouped::launch_weight_only(call.args, at, stream); });
}

inline PyObject* run_grouped_bytes(const char* op, GroupedCall& call) {
  const LinearArgs& a = call.args.one;
  bytes::GroupedLinear linear{
      .one = {.tokens = {.x = a.x, .codes = nullptr, .scale = nullptr, .given = nullptr, .peaks = nullptr, .M = a.M, .K = a.K,
                         .x_stride = a.x_stride, .scale_stride = 0, .x_dtype = a.x_dtype, .float8 = a.bits == kE4m3,
                         .scales = TokenScales::row, .chained = false},
              .codes = a.codes, .scale = a.scale, .bias = a.bias, .y = nullptr, .N = a.N,
              .scale_stride = a.block_n >= a.N ? 0 : a.scale_stride, .block_n = a.block_n, .scale_dtype = a.scale_dtype,
              .bias_dtype = a.bias_dtype},
      .experts = call.args.experts, .scale_bytes = call.args.scale_bytes, .bias_bytes = call.args.bias_bytes};
  if (a.G != 1 || (a.block_n > 1 && a.block_n < a.N) || *bytes::device_refusal(*device(call.x.device)) || !bytes::takes(linear))
    return not_implemented();
  if (a.M == 0 || a.N == 0) return call.new_result();
  const Workspace workspace(bytes::workspace_bytes(linear.one.tokens), DeviceType::cuda, call.x.device);
  if (!workspace.data()) return nullptr;
  bytes::place_tokens(linear.one.tokens, workspace.data());
  return call.run(op, [&](const Device& at, cudaStream_t stream) {
    linear.one.y = call.args.one.y;
    return bytes::launch(linear, at, stream);
  });
}

}  // namespace ao
