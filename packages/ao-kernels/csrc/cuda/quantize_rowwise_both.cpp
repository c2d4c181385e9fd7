// Scales of rows and columns on CUDA tensors. See ao_kernels/ops/quantize_rowwise_both.py.
#include "cuda/cast_call.h"

using ao::casts::Call;

static PyObject* quantize_rowwise_both(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  Call call;
  if (n_args < 3 || n_args > 5 || !call.read(args[1], args[2], ao::argument(args, n_args, 3), ao::argument(args, n_args, 4)) ||
      (!call.by_column && call.dims() == 2))
    return ao::not_implemented();
  ao::casts::Cast& cast = call.cast;
  cast.scales = ao::casts::Scales::vectors;
  const int64_t E = cast.matrices, R = cast.rows, C = cast.columns;
  const int from = call.dims() == 3 ? 0 : 1, dims = call.dims();
  const int64_t codes[3] = {E, R, C}, scale[3] = {E, R, 1}, codes_t[3] = {E, C, R}, scale_t[3] = {E, C, 1};
  ao::casts::Results<4> results;
  const auto place = [](auto& pointer) { return reinterpret_cast<void**>(&pointer); };
  if (!results.keep(0, call.room(call.by_row, dims, codes + from, call.code_dtype(), place(cast.codes))) ||
      !results.keep(1, call.room(call.by_row, dims, scale + from, ao::DType::f32, place(cast.scale))) ||
      !results.keep(2, call.room(call.by_column, dims, codes_t + from, call.code_dtype(), place(cast.codes_t))) ||
      !results.keep(3, call.room(call.by_column, dims, scale_t + from, ao::DType::f32, place(cast.scale_t))))
    return nullptr;
  const int64_t of_rows = call.by_row ? E * R : 0, peaks = of_rows + (call.by_column ? E * C : 0);
  const ao::Workspace memory(4 * peaks, ao::DeviceType::cuda, call.device_index());
  if (!memory.data()) return nullptr;
  if (call.by_row) cast.peaks = static_cast<uint32_t*>(memory.data());
  if (call.by_column) cast.peaks_t = static_cast<uint32_t*>(memory.data()) + of_rows;
  return ao::casts::run("quantize_rowwise_both", cast, call.device_index(), peaks) ? results.hand_over(call.swapped) : nullptr;
}

void register_quantize_rowwise_both(pybind11::module_& m) {
  ao::add_fastcall(m, "quantize_rowwise_both", quantize_rowwise_both,
                   "(0, x, dtype, power_of_two=False, outputs='both') -> codes, scale, codes_t, scale_t or NotImplemented");
}
