// float8 linear of experts with float8 activations on CUDA tensors. See ao_kernels/ops/float8_dynamic_grouped_linear.py.
#include "cuda/grouped_call.h"

namespace {

// With more rows of an expert, on average, the library's product of float8 codes is faster, where it takes a call and adds up in the matrix
// units alone. H200, 1024 rows: 28672 x 4096 1951 us here and 1765 there, 4096 x 14336 991 and 1058.
constexpr int64_t kLibraryRows = 128, kLibraryFeatures = 4096;

bool is_for_library(const ao::GroupedArgs& a) {
  const ao::LinearArgs& one = a.one;
  const bool takes = one.x_dtype == ao::DType::bf16 && !one.bias && one.scale_stride == 1 && a.scale_bytes == 4 * one.N &&
                     one.N % 16 == 0 && one.K <= kLibraryFeatures;
  return takes && !ao::forced_tile && ao::rows_of_expert(a.experts) > kLibraryRows;
}

}  // namespace

// Scales of tokens are those of rows; others are not taken.
static PyObject* float8_dynamic_grouped_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::GroupedCall call;
  int64_t block_n, block_k;
  if (n_args < 8 || n_args > 9 || !ao::read_int(args[4], &block_n) || !ao::read_int(args[5], &block_k) || !PyUnicode_Check(args[6]) ||
      PyUnicode_CompareWithASCIIString(args[6], "row") != 0 ||
      !call.read(args[1], args[2], args[3], Py_None, ao::kE4m3, block_k, args[7], ao::argument(args, n_args, 8), block_n) ||
      call.args.one.x_dtype == ao::DType::f32 || is_for_library(call.args))
    return ao::not_implemented();
  return ao::run_grouped_bytes("float8_dynamic_grouped_linear", call);
}

void register_float8_dynamic_grouped_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "float8_dynamic_grouped_linear", float8_dynamic_grouped_linear,
                   "(most_rows, x, codes, scale, block_n, block_k, activation, offsets, bias=None) -> y or NotImplemented");
}
