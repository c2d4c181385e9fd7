// Scales of rows and columns on CUDA tensors. See ao_kernels/ops/quantize_rowwise_both.py.
#include "cuda/cast_call.h"

using ao::casts::Call;

static PyObject* quantize_rowwise_both(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  Call call;
  if (n_args < 3 || n_args > 5 || !call.read(args[1], args[2], args + 3, n_args - 3) || !call.by_column)
    return ao::not_implemented();
  ao::casts::Cast& cast = call.cast;
  cast.scales = ao::casts::Scales::vectors;
  const int64_t R = cast.rows, C = cast.columns;
  const int64_t codes[2] = {R, C}, scale[2] = {R, 1}, codes_t[2] = {C, R}, scale_t[2] = {C, 1};
  ao::casts::Results<4> results;
  const auto place = [](auto& pointer) { return reinterpret_cast<void**>(&pointer); };
  if (!results.keep(0, call.room(call.by_row, 2, codes, call.code_dtype(), place(cast.codes))) ||
      !results.keep(1, call.room(call.by_row, 2, scale, ao::DType::f32, place(cast.scale))) ||
      !results.keep(2, call.room(true, 2, codes_t, call.code_dtype(), place(cast.codes_t))) ||
      !results.keep(3, call.room(true, 2, scale_t, ao::DType::f32, place(cast.scale_t))))
    return nullptr;
  const int64_t of_rows = call.by_row ? R : 0;
  return ao::casts::run_vectors("quantize_rowwise_both", call, of_rows, C) ? results.hand_over(call.swapped) : nullptr;
}

void register_quantize_rowwise_both(pybind11::module_& m) {
  ao::add_fastcall(m, "quantize_rowwise_both", quantize_rowwise_both,
                   "(0, x, dtype, power_of_two=False, outputs='both') -> codes, scale, codes_t, scale_t or NotImplemented");
}
