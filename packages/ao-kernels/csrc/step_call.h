// Binding of the ops that take a step of an optimizer: reads and checks
//   (any, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, max_exp_avg_sq_scale, scalars, state_bits,
//    block_size, decoupled, maximize, dithers, keys, offsets)                                                     adam_step
//   (any, params, grads, exp_avg, exp_avg_scale, scalars, state_bits, block_size, maximize, keys, offsets)        lion_step
// Nothing is changed where it does not take the arguments as they are: the Python side then makes them ready or words the refusal.
#pragma once
#include <cstring>
#include <vector>

#include "optimizer_step.h"
#include "tensor.h"

namespace ao {

struct StepCall {
  StepOptions options = {};
  std::vector<StepTensor> tensors;  // those that have elements
  std::vector<int> rows;            // of scalars, of each tensor
  const double* device_scalars = nullptr;
  int64_t scalars_stride = 0;
  int32_t device = 0;
  DeviceType type = DeviceType::cpu;

  bool read_adam(PyObject* const* args, Py_ssize_t n_args) {
    if (n_args != 17) return false;
    const bool amsgrad = PySequence_Check(args[5]) && PySequence_Size(args[5]) > 0;
    options.rule = amsgrad ? StepRule::amsgrad : StepRule::adam;
    options.decoupled = args[12] == Py_True;
    options.maximize = args[13] == Py_True;
    PyObject* const values[3] = {args[3], args[4], args[5]};
    PyObject* const scales[3] = {args[6], args[7], args[8]};
    return read(args[1], args[2], values, scales, amsgrad ? 3 : 2, args[9], args[10], args[11], args[15], args[16], args[14]);
  }

  bool read_lion(PyObject* const* args, Py_ssize_t n_args) {
    if (n_args != 11) return false;
    options.rule = StepRule::lion;
    options.decoupled = true;
    options.maximize = args[8] == Py_True;
    return read(args[1], args[2], &args[3], &args[4], 1, args[5], args[6], args[7], args[9], args[10]);
  }

 private:
  struct List {
    PyObject** items = nullptr;
    Py_ssize_t size = -1;
    explicit List(PyObject* from) {
      if (!from || (!PyList_CheckExact(from) && !PyTuple_CheckExact(from))) return;
      items = PySequence_Fast_ITEMS(from);
      size = PySequence_Fast_GET_SIZE(from);
    }
  };

  static bool same_shape(const Tensor& a, const Tensor& b) {
    return a.ndim == b.ndim && std::memcmp(a.shape, b.shape, sizeof(int64_t) * a.ndim) == 0;
  }

  bool read_format(PyObject* name, PyObject* block_size) {
    const char* const text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : nullptr;
    int64_t n;
    if (!text || !read_int(block_size, &n)) return false;
    if (!std::strcmp(text, "32")) options.format = MomentFormat::full, n = 256;
    else if (!std::strcmp(text, "8")) options.format = MomentFormat::bits8;
    else if (!std::strcmp(text, "4")) options.format = MomentFormat::bits4;
    else if (!std::strcmp(text, "fp8")) options.format = MomentFormat::e4m3;
    else return false;
    if (n < 8 || n > 4096 || n % 8) return false;
    options.n = static_cast<int>(n);
    return true;
  }

  bool read(PyObject* params, PyObject* grads, PyObject* const* values, PyObject* const* scales, int moments, PyObject* scalars,
            PyObject* state_bits, PyObject* block_size, PyObject* keys, PyObject* offsets, PyObject* dithers = nullptr) {
    const List p_list(params), g_list(grads), key_list(keys), offset_list(offsets);
    const Py_ssize_t count = p_list.size;
    if (count < 1 || g_list.size != count || !read_format(state_bits, block_size)) return false;
    if (key_list.size != offset_list.size || (key_list.size != 0 && key_list.size != count)) return false;
    const List dither_list(dithers);
    if (dithers && dither_list.size != 0 && (dither_list.size != count || options.format != MomentFormat::bits4)) return false;
    options.dithered = dither_list.size > 0;
    const double* host_scalars = nullptr;
    if (!read_scalars(scalars, count, &host_scalars)) return false;
    const bool full = options.format == MomentFormat::full;
    tensors.reserve(count);
    rows.reserve(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      Tensor p, g;
      if (!read_tensor(p_list.items[i], &p, type) || !read_tensor(g_list.items[i], &g, type)) return false;
      if (i == 0) {
        options.p_dtype = p.dtype, options.g_dtype = g.dtype;
        if (device_scalars && device != p.device) return false;
        device = p.device;
        if (!is_activation_dtype(p.dtype) || !is_activation_dtype(g.dtype)) return false;
      }
      if (p.dtype != options.p_dtype || g.dtype != options.g_dtype || p.device != device || g.device != device) return false;
      if (!same_shape(p, g) || !p.contiguous() || !g.contiguous()) return false;
      StepTensor t = {};
      t.p = p.data, t.g = g.data, t.numel = 1;
      for (int d = 0; d < p.ndim; ++d) t.numel *= p.shape[d];
      uintptr_t together = reinterpret_cast<uintptr_t>(p.data) | reinterpret_cast<uintptr_t>(g.data);
      for (int k = 0; k < moments; ++k) {
        const List value_list(values[k]), scale_list(scales[k]);
        if (value_list.size != count || scale_list.size != (full ? 0 : count)) return false;
        Tensor value, scale;
        if (!read_tensor(value_list.items[i], &value, type) || value.device != device || !value.contiguous()) return false;
        t.values[k] = value.data;
        if (full) {
          if (value.dtype != DType::f32 || !same_shape(value, p)) return false;
          together |= reinterpret_cast<uintptr_t>(value.data);
          continue;
        }
        if (!read_tensor(scale_list.items[i], &scale, type) || scale.device != device) return false;
        const int64_t n = options.n, blocks = (t.numel + n - 1) / n, width = options.format == MomentFormat::bits4 ? n / 2 : n;
        const DType stored = options.format == MomentFormat::e4m3 ? DType::e4m3 : DType::u8;
        if (value.dtype != stored || !value.is_matrix(blocks, width) || reinterpret_cast<uintptr_t>(value.data) % (width * 8 / n)) return false;
        if (scale.dtype != DType::f32 || scale.ndim != 1 || scale.shape[0] != blocks || !scale.contiguous()) return false;
        t.scales[k] = scale.as<float>();
      }
      t.aligned = together % 16 == 0;
      if (host_scalars)
        for (int s = 0; s < kStepScalars; ++s) t.scalars[s] = static_cast<float>(host_scalars[i * scalars_stride + s]);
      if (options.dithered) {
        int64_t start;
        if (!read_int(dither_list.items[i], &start)) return false;
        t.dither = static_cast<uint32_t>(start);
      }
      if (key_list.size && options.p_dtype == DType::bf16) {
        int64_t key;
        if (!read_int(key_list.items[i], &key) || !read_int(offset_list.items[i], &t.offset)) return false;
        t.key = static_cast<uint32_t>(key);
        options.stochastic = true;
      }
      if (t.numel) tensors.push_back(t), rows.push_back(static_cast<int>(i));
    }
    return true;
  }

  // (count, 8) float64 on the CPU or, for CUDA, on the device; rows may be the same one.
  bool read_scalars(PyObject* object, Py_ssize_t count, const double** host) {
    Tensor t;
    const bool on_host = read_tensor(object, &t, DeviceType::cpu);
    if (!on_host && !(type == DeviceType::cuda && read_tensor(object, &t, DeviceType::cuda))) return false;
    if (t.dtype != DType::f64 || t.ndim != 2 || t.shape[0] != count || t.shape[1] != kStepScalars || t.strides[1] != 1) return false;
    scalars_stride = t.strides[0];
    if (on_host) *host = t.as<double>();
    else device_scalars = t.as<double>(), device = t.device;
    return true;
  }
};

}  // namespace ao
