// Binding of the weight-only linear ops: reads and checks the arguments of
// (n_threads, x, codes, scale, zero, [bits,] group_size, bias=None) and runs the kernel without the GIL.
// Whatever the kernels do not take as it is (other types, strides, devices, wrong shapes) gives NotImplemented: the
// Python side then makes it contiguous, goes elsewhere, or words the refusal.
#pragma once
#include "cpu_features.h"
#include "linear.h"
#include "tensor.h"

namespace ao {

struct LinearCall {
  LinearArgs args;
  Tensor x;
  DeviceType device_type = DeviceType::cpu;  // of all tensors

  // bits: of LinearArgs; with codes that are no unsigned integers there is no zero.
  bool read(PyObject* n_threads, PyObject* x_object, PyObject* codes_object, PyObject* scale_object,
            PyObject* zero_object, int64_t bits, int64_t group_size, PyObject* bias_object, int64_t block_n = 1) {
    Tensor codes, scale, zero, bias;
    int64_t threads;
    if (!read_int(n_threads, &threads) || !read_tensor(x_object, &x, device_type) ||
        !read_beside_x(codes_object, &codes) || !read_beside_x(scale_object, &scale))
      return false;
    if (x.ndim < 1 || x.ndim > kMaxDims || !is_activation_dtype(x.dtype) || group_size < 1 || block_n < 1)
      return false;
    const int64_t K = x.size(-1);
    if (codes.ndim != 2 || codes.dtype != dtype_of_codes(bits)) return false;
    const int64_t N = codes.shape[0];
    const int64_t row_bytes = bits > 0 ? (K + 7) / 8 * bits : K;
    if (!codes.is_matrix(N, row_bytes) || K == 0) return false;
    if (group_size < K && group_size % 8 != 0) return false;
    const int64_t G = (K + group_size - 1) / group_size;
    const bool float8 = bits == kE4m3 || bits == kE5m2;
    if (!float8 && block_n != 1) return false;
    if (block_n >= N) block_n = N > 0 ? N : 1;
    const int64_t scale_rows = (N + block_n - 1) / block_n;
    const bool may_share = !float8 || scale_rows == 0;  // one row of scales that serves all
    if (scale.ndim != 2 || (scale.shape[0] != scale_rows && !(may_share && scale.shape[0] == 1))) return false;
    if (!scale.is_matrix(scale.shape[0], G)) return false;
    if (float8 ? scale.dtype != DType::f32 : !is_scale_dtype(scale.dtype)) return false;
    const bool has_zero = zero_object != Py_None;
    if (has_zero && (!read_beside_x(zero_object, &zero) || zero.dtype != scale.dtype ||
                     !zero.is_matrix(scale.shape[0], G)))
      return false;
    const bool has_bias = bias_object != Py_None;
    if (has_bias && (!read_beside_x(bias_object, &bias) || bias.ndim != 1 || bias.shape[0] != N ||
                     !bias.contiguous() || !is_activation_dtype(bias.dtype)))
      return false;

    int64_t M = 1;
    for (int d = 0; d < x.ndim - 1; ++d) M *= x.shape[d];
    // One stride for all rows: contiguous, or a matrix whose rows are adjacent elements.
    int64_t x_stride = K;
    if (!x.contiguous()) {
      if (x.ndim != 2 || x.strides[1] != 1 || x.strides[0] < K) return false;
      x_stride = x.strides[0];
    }
    args = LinearArgs{
        .x = x.data, .y = nullptr, .codes = codes.as<uint8_t>(), .scale = scale.data,
        .zero = has_zero ? zero.data : nullptr, .bias = has_bias ? bias.data : nullptr,
        .M = M, .N = N, .K = K, .G = G, .x_stride = x_stride,
        .group_size = group_size < K ? group_size : K, .row_bytes = row_bytes,
        .scale_stride = scale.shape[0] == 1 && N != 1 ? 0 : G, .bits = static_cast<int>(bits),
        .n_threads = static_cast<int>(threads), .x_dtype = x.dtype, .scale_dtype = scale.dtype,
        .bias_dtype = has_bias ? bias.dtype : DType::f32, .block_n = block_n};
    return true;
  }

  // args.y and its tensor, (..., N); nullptr with a Python error set when it fails.
  PyObject* new_result() {
    int64_t shape[kMaxDims];
    for (int d = 0; d < x.ndim - 1; ++d) shape[d] = x.shape[d];
    shape[x.ndim - 1] = args.N;
    return new_tensor(x.ndim, shape, x.dtype, &args.y, device_type, x.device);
  }

  PyObject* run(LinearKernel* kernel) {
    PyObject* y = new_result();
    if (!y || args.M == 0 || args.N == 0) return y;
    PyThreadState* const state = PyEval_SaveThread();
    kernel(args);
    PyEval_RestoreThread(state);
    return y;
  }

 private:
  static constexpr int kMaxDims = 16;

  static DType dtype_of_codes(int64_t bits) {
    if (bits > 0) return DType::u8;
    return bits == kInt8 ? DType::i8 : bits == kE4m3 ? DType::e4m3 : DType::e5m2;
  }

  bool read_beside_x(PyObject* object, Tensor* out) const {
    return read_tensor(object, out, device_type) && out->device == x.device;
  }
};

}  // namespace ao
