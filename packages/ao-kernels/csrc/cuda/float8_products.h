// Binding of the products of float8 operands of experts: reads and checks the arguments (a, a_scale, b, b_scale, ends, out_dtype=None, fast_accum=False),
// which both ops have.
#pragma once
#include "cuda/byte_product.h"
#include "cuda/grouped_products.h"
#include "tensor.h"

namespace ao {

// torch.bfloat16 or None, torch.float16, torch.float32.
inline bool read_dtype(PyObject* object, DType* out) {
  const auto find = [](const char* name) { return pybind11::object(pybind11::module_::import("torch").attr(name)).release().ptr(); };
  static PyObject* const known[3] = {find("bfloat16"), find("float16"), find("float32")};
  constexpr DType kDTypes[3] = {DType::bf16, DType::f16, DType::f32};
  *out = DType::bf16;
  if (object == Py_None) return true;
  for (int i = 0; i < 3; ++i)
    if (object == known[i]) return *out = kDTypes[i], true;
  return false;
}

// args: a number that is ignored, and those of the op.
inline PyObject* run_product(const char* op, PyObject* const* args, Py_ssize_t n_args, bool over_places) {
  Tensor a, a_scale, b, b_scale, ends;
  DType y_dtype;
  if (n_args < 6 || n_args > 8 || !read_tensor(args[1], &a, DeviceType::cuda) || !read_dtype(argument(args, n_args, 6), &y_dtype))
    return not_implemented();
  PyObject* const fast_accum = n_args > 7 ? args[7] : Py_False;
  if (!PyBool_Check(fast_accum)) return not_implemented();
  Tensor* const others[4] = {&a_scale, &b, &b_scale, &ends};
  for (int i = 0; i < 4; ++i)
    if (!read_tensor(args[i + 2], others[i], DeviceType::cuda) || others[i]->device != a.device || !others[i]->contiguous())
      return not_implemented();
  if (!a.contiguous() || a.dtype != DType::e4m3 || b.dtype != DType::e4m3 || a_scale.dtype != DType::f32 || b_scale.dtype != DType::f32 ||
      ends.dtype != DType::i32 || ends.ndim != 1 || a.ndim != 2 || b.ndim != (over_places ? 2 : 3))
    return not_implemented();
  const int64_t E = ends.shape[0], M = a.shape[0], K = a.shape[1], N = b.shape[over_places ? 0 : 1];
  const auto values = [](const Tensor& t) {
    int64_t n = 1;
    for (int i = 0; i < t.ndim; ++i) n *= t.shape[i];
    return n;
  };
  if (E < 1 || E > kMostExperts || b.shape[b.ndim - 1] != K || (!over_places && b.shape[0] != E) || values(b_scale) != E * N ||
      values(a_scale) != (over_places ? E * M : M))
    return not_implemented();
  if (K >= int64_t{1} << 30 || M >= int64_t{1} << 30) return not_implemented();  // places and rows are counted in an int
  bytes::GroupedProduct product{.x = a.as<uint8_t>(), .x_scale = a_scale.as<float>(), .codes = b.as<uint8_t>(), .scale = b_scale.as<float>(),
                                .y = nullptr, .M = M, .N = N, .K = K,
                                .experts = {ends.as<int>(), static_cast<int>(E), static_cast<int>(over_places ? K : M)},
                                .y_dtype = y_dtype, .over_places = over_places, .fast_accum = fast_accum == Py_True};
  if (*bytes::device_refusal(*device(a.device)) || !bytes::takes(product)) return not_implemented();
  const int64_t shape[3] = {over_places ? E : M, over_places ? M : N, N};
  PyObject* const y = new_tensor(over_places ? 3 : 2, shape, product.y_dtype, &product.y, DeviceType::cuda, a.device);
  if (!y) return nullptr;
  void* stream;
  CurrentDevice current(a.device);
  if (current_stream(a.device, &stream) && launched(op, bytes::launch(product, *device(a.device), static_cast<cudaStream_t>(stream)))) return y;
  Py_DECREF(y);
  return nullptr;
}

}  // namespace ao
