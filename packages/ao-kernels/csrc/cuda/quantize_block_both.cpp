// Scales of blocks on CUDA tensors. See ao_kernels/ops/quantize_block_both.py.
#include "cuda/cast_call.h"

using ao::casts::Call;

static PyObject* quantize_block_both(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  Call call;
  int64_t block_rows, block_columns;
  if (n_args < 5 || n_args > 7 || !call.read(args[1], args[2], args + 5, n_args - 5) ||
      !ao::read_int(args[3], &block_rows) || !ao::read_int(args[4], &block_columns) || block_columns != ao::casts::kTile ||
      (block_rows != 1 && block_rows != ao::casts::kTile))
    return ao::not_implemented();
  ao::casts::Cast& cast = call.cast;
  const bool square = block_rows != 1;
  cast.scales = square ? ao::casts::Scales::squares : ao::casts::Scales::row_blocks;
  const auto blocks = [](int64_t n) { return (n + ao::casts::kTile - 1) / ao::casts::kTile; };
  const int64_t R = cast.rows, C = cast.columns;
  const int64_t codes[2] = {R, C}, codes_t[2] = {C, R};
  const int64_t scale[2] = {square ? blocks(R) : blocks(C), square ? blocks(C) : R};
  const int64_t scale_t[2] = {square ? blocks(C) : blocks(R), square ? blocks(R) : C};
  ao::casts::Results<4> results;
  const auto place = [](auto& pointer) { return reinterpret_cast<void**>(&pointer); };
  if (!results.keep(0, call.room(call.by_row, 2, codes, call.code_dtype(), place(cast.codes))) ||
      !results.keep(1, call.room(call.by_row, 2, scale, ao::DType::f32, place(cast.scale))) ||
      !results.keep(2, call.room(call.by_column, 2, codes_t, call.code_dtype(), place(cast.codes_t))) ||
      !results.keep(3, call.room(call.by_column, 2, scale_t, ao::DType::f32, place(cast.scale_t))))
    return nullptr;
  if (!square && ((call.by_row && !results.transpose(1)) || (call.by_column && !results.transpose(3)))) return nullptr;
  return ao::casts::run_blocks("quantize_block_both", call) ? results.hand_over(call.swapped) : nullptr;
}

void register_quantize_block_both(pybind11::module_& m) {
  ao::add_fastcall(
      m, "quantize_block_both", quantize_block_both,
      "(0, x, dtype, block_rows, block_cols, power_of_two=False, outputs='both') -> codes, scale, codes_t, scale_t or NotImplemented");
}
