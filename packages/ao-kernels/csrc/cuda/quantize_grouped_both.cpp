// Tokens of experts on CUDA tensors. See ao_kernels/ops/quantize_grouped_both.py.
#include "cuda/cast_call.h"

using ao::casts::Call;

static PyObject* quantize_grouped_both(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  Call call;
  ao::Tensor offsets;
  if (n_args < 4 || n_args > 6 || !call.read(args[1], args[2], args + 4, n_args - 4) ||
      call.swapped || !call.by_column || !ao::read_tensor(args[3], &offsets, ao::DeviceType::cuda) || offsets.device != call.device_index() ||
      offsets.dtype != ao::DType::i32 || offsets.ndim != 1 || !offsets.contiguous() || offsets.shape[0] < 1 || offsets.shape[0] > ao::kMostExperts)
    return ao::not_implemented();
  ao::casts::Cast& cast = call.cast;
  cast.scales = ao::casts::Scales::vectors;
  const int64_t E = offsets.shape[0], R = cast.rows, C = cast.columns;
  cast.experts = {offsets.as<int>(), static_cast<int>(E), cast.R};
  cast.places = (int64_t{cast.R} + 31) / 32 * 32 + 32 * E;
  const int64_t codes[2] = {R, C}, scale[2] = {R, 1}, codes_t[2] = {C, cast.places}, scale_t[2] = {E, C};
  ao::casts::Results<5> results;
  const auto place = [](auto& pointer) { return reinterpret_cast<void**>(&pointer); };
  if (!results.keep(0, call.room(call.by_row, 2, codes, call.code_dtype(), place(cast.codes))) ||
      !results.keep(1, call.room(call.by_row, 2, scale, ao::DType::f32, place(cast.scale))) ||
      !results.keep(2, call.room(true, 2, codes_t, call.code_dtype(), place(cast.codes_t))) ||
      !results.keep(3, call.room(true, 2, scale_t, ao::DType::f32, place(cast.scale_t))) ||
      !results.keep(4, call.room(true, 1, &E, ao::DType::i32, place(cast.ends))))
    return nullptr;
  return ao::casts::run_vectors("quantize_grouped_both", call, call.by_row ? R : 0, E * C) ? results.hand_over(false) : nullptr;
}

void register_quantize_grouped_both(pybind11::module_& m) {
  ao::add_fastcall(m, "quantize_grouped_both", quantize_grouped_both,
                   "(0, x, dtype, offsets, power_of_two=False, outputs='both') -> codes, scale, codes_t, scale_t, ends or NotImplemented");
}
