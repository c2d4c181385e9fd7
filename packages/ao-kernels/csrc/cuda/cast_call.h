// Binding of casts in both directions: reads and checks the arguments that the ops share, and makes room for results.
#pragma once
#include <string_view>

#include "cuda/cast.h"
#include "cuda/device.h"
#include "tensor.h"

namespace ao::casts {

// A cast that a kernel takes. `swapped`: x came transposed, so that rows of the cast are columns of the results.
class Call {
 public:
  // x, its dtype of codes, and, as far as they are given, whether scales are powers of two and what is wanted. False: the kernels do not take
  // these as they are.
  bool read(PyObject* x, PyObject* dtype, PyObject* const* options, Py_ssize_t n_options) {
    if (!read_tensor(x, &x_, DeviceType::cuda) || !read_code_dtype(dtype) || (n_options > 0 && !read_bool(options[0])) ||
        (n_options > 1 && !read_outputs(options[1])))
      return false;
    if (x_.ndim != 2 || (x_.dtype != DType::bf16 && x_.dtype != DType::f16)) return false;
    for (int d = 0; d < 2; ++d)
      if (x_.shape[d] < 1 || x_.shape[d] >= int64_t{1} << 30) return false;
    swapped = x_.strides[1] != 1;
    const int64_t R = x_.shape[swapped], C = x_.shape[!swapped];
    cast.x = x_.data, cast.x_stride = x_.strides[swapped];
    cast.R = static_cast<int>(R), cast.C = static_cast<int>(C);
    if (x_.strides[!swapped] != 1 || C % 8 || cast.x_stride % 8 || reinterpret_cast<uintptr_t>(x_.data) % 16) return false;
    cast.rows = padded(cast.R), cast.columns = padded(cast.C);
    cast.half = x_.dtype == DType::f16;
    by_row = swapped ? transposed_ : straight_, by_column = swapped ? straight_ : transposed_;
    return takes(cast) && device(x_.device)->usable;
  }

  // A result; the empty tensor where it is not wanted.
  PyObject* room(bool wanted, int32_t ndim, const int64_t* shape, DType dtype, void** data) const {
    const int64_t nothing = 0;
    void* none;
    return wanted ? new_tensor(ndim, shape, dtype, data, DeviceType::cuda, x_.device)
                  : new_tensor(1, &nothing, dtype, &none, DeviceType::cuda, x_.device);
  }

  DType code_dtype() const { return cast.e5m2 ? DType::e5m2 : DType::e4m3; }
  int device_index() const { return x_.device; }

  Cast cast{};
  bool swapped = false, by_row = false, by_column = false;

 private:
  static int padded(int n) { return (n + 15) / 16 * 16; }

  bool read_code_dtype(PyObject* object) {
    const auto find = [](const char* name) { return pybind11::object(pybind11::module_::import("torch").attr(name)).release().ptr(); };
    static PyObject* const e4m3 = find("float8_e4m3fn");
    static PyObject* const e5m2 = find("float8_e5m2");
    cast.e5m2 = object == e5m2;
    return object == e4m3 || object == e5m2;
  }

  bool read_bool(PyObject* object) {
    cast.power_of_two = object == Py_True;
    return PyBool_Check(object);
  }

  bool read_outputs(PyObject* object) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
    if (!text) return PyErr_Clear(), false;
    const std::string_view wanted(text, size);
    straight_ = wanted == "both" || wanted == "rows";
    transposed_ = wanted == "both" || wanted == "columns";
    return straight_ || transposed_;
  }

  Tensor x_{};
  bool straight_ = true, transposed_ = true;
};

// Results of a call, which it owns until they are handed over.
template <int N>
class Results {
 public:
  ~Results() {
    for (PyObject* each : all_) Py_XDECREF(each);
  }
  bool keep(int i, PyObject* object) { return (all_[i] = object) != nullptr; }
  // Scales of 1 x 128 lie column by column.
  bool transpose(int i) {
    PyObject* const other = PyObject_GetAttrString(all_[i], "mT");
    Py_DECREF(all_[i]);
    return keep(i, other);
  }
  // swapped: what is of rows here is of the columns of x.
  PyObject* hand_over(bool swapped) {
    PyObject* const tuple = PyTuple_New(N);
    if (!tuple) return nullptr;
    for (int i = 0; i < N; ++i) {
      PyTuple_SET_ITEM(tuple, swapped && i < 4 ? (i + 2) % 4 : i, all_[i]);
      all_[i] = nullptr;
    }
    return tuple;
  }

 private:
  PyObject* all_[N] = {};
};

// Puts the cast into torch's stream, with peaks of so many rows and columns.
inline bool run_vectors(const char* op, Call& call, int64_t rows, int64_t columns) {
  Cast& cast = call.cast;
  const int index = call.device_index();
  const Workspace memory(4 * (rows + columns), DeviceType::cuda, index);
  if (!memory.data()) return false;
  cast.peaks_t = static_cast<uint32_t*>(memory.data()) + rows;
  if (rows) cast.peaks = static_cast<uint32_t*>(memory.data());
  void* stream;
  CurrentDevice current(index);
  if (!current_stream(index, &stream)) return false;
  const auto on = static_cast<cudaStream_t>(stream);
  return launched(op, cudaMemsetAsync(memory.data(), 0, 4 * (rows + columns), on)) && launched(op, find_peaks(cast, on)) &&
         launched(op, cast_vectors(cast, device(index)->multiprocessors, on));
}

inline bool run_blocks(const char* op, const Call& call) {
  const int index = call.device_index();
  void* stream;
  CurrentDevice current(index);
  if (!current_stream(index, &stream)) return false;
  const auto start = call.cast.scales == Scales::squares ? cast_squares : cast_row_blocks;
  return launched(op, start(call.cast, device(index)->multiprocessors, static_cast<cudaStream_t>(stream)));
}

}  // namespace ao::casts
