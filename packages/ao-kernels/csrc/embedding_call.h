// Binding of the embedding ops: reads and checks (n_threads, indices, codes, scale, [zero, bits,] group_size, [length,] dtype)
// and runs the kernel without the GIL. What the kernels do not take as it is gives NotImplemented, an index out of range too:
// the Python side then words the refusal.
#pragma once
#include "cpu_features.h"
#include "embedding.h"
#include "tensor.h"

namespace ao {

struct EmbeddingCall {
  EmbeddingArgs args;
  Tensor index;

  // bits 0: int8 codes and no zero; `length` is then that of a row of codes.
  bool read(PyObject* n_threads, PyObject* index_object, PyObject* codes_object, PyObject* scale_object,
            PyObject* zero_object, int64_t bits, int64_t group_size, int64_t length, PyObject* dtype_object) {
    Tensor codes, scale, zero;
    int64_t threads;
    DType dtype;
    if (!read_int(n_threads, &threads) || !read_tensor(index_object, &index) ||
        !read_tensor(codes_object, &codes) || !read_tensor(scale_object, &scale) ||
        !read_dtype(dtype_object, &dtype))
      return false;
    if (!index.contiguous() || (index.dtype != DType::i32 && index.dtype != DType::i64)) return false;
    if (codes.ndim != 2 || codes.dtype != (bits ? DType::u8 : DType::i8) || !codes.contiguous()) return false;
    const int64_t N = codes.shape[0], row_bytes = codes.shape[1];
    const int64_t K = bits ? length : row_bytes;
    if (N == 0 || K < 1 || group_size < 1 || row_bytes != (bits ? (K + 7) / 8 * bits : K)) return false;
    if (scale.ndim != 2 || (scale.shape[0] != N && scale.shape[0] != 1)) return false;
    if (!scale.contiguous() || !is_scale_dtype(scale.dtype)) return false;
    const bool has_zero = zero_object != Py_None;
    const int64_t G = scale.shape[1];
    if (has_zero && (!read_tensor(zero_object, &zero) || zero.dtype != scale.dtype ||
                     !zero.is_matrix(scale.shape[0], G)))
      return false;
    if ((group_size < K && group_size % 8 != 0) || G != (K + group_size - 1) / group_size) return false;

    int64_t count = 1;
    for (int d = 0; d < index.ndim; ++d) count *= index.shape[d];
    args = EmbeddingArgs{
        .index = index.data, .out = nullptr, .codes = codes.as<uint8_t>(), .scale = scale.data,
        .zero = has_zero ? zero.data : nullptr, .count = count, .N = N, .K = K, .G = G,
        .group_size = group_size < K ? group_size : K, .row_bytes = row_bytes,
        .scale_stride = scale.shape[0] == 1 && N != 1 ? 0 : G, .bits = static_cast<int>(bits),
        .n_threads = static_cast<int>(threads), .index_dtype = index.dtype, .out_dtype = dtype,
        .scale_dtype = scale.dtype};
    for (int64_t i = 0; i < count; ++i)
      if (args.row(i) < 0 || args.row(i) >= N) return false;
    return true;
  }

  PyObject* run(EmbeddingKernel* kernel) {
    constexpr int kMaxDims = 16;
    if (index.ndim >= kMaxDims) return not_implemented();
    int64_t shape[kMaxDims];
    for (int d = 0; d < index.ndim; ++d) shape[d] = index.shape[d];
    shape[index.ndim] = args.K;
    PyObject* out = new_tensor(index.ndim + 1, shape, args.out_dtype, &args.out);
    if (!out || args.count == 0) return out;
    PyThreadState* const state = PyEval_SaveThread();
    kernel(args);
    PyEval_RestoreThread(state);
    return out;
  }

 private:
  // torch.float32, torch.bfloat16 or torch.float16.
  static bool read_dtype(PyObject* object, DType* out) {
    static PyObject* const known[] = {torch_object("float32"), torch_object("bfloat16"), torch_object("float16")};
    static constexpr DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
    for (int i = 0; i < 3; ++i)
      if (object == known[i]) {
        *out = dtypes[i];
        return true;
      }
    return false;
  }

  // A dtype lives as long as torch, which is never unloaded.
  static PyObject* torch_object(const char* name) {
    return pybind11::module_::import("torch").attr(name).ptr();
  }
};

}  // namespace ao
