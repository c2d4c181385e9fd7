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
  // x, its dtype of codes, whether scales are powers of two, and what is wanted. False: the kernels do not take these as they are.
  bool read(PyObject* x, PyObject* dtype, PyObject* power_of_two, PyObject* outputs) {
    if (!read_tensor(x, &x_, DeviceType::cuda) || !read_code_dtype(dtype) || !read_bool(power_of_two) || !read_outputs(outputs)) return false;
    if (x_.ndim < 2 || x_.ndim > 3 || (x_.dtype != DType::bf16 && x_.dtype != DType::f16)) return false;
    for (int d = 0; d < x_.ndim; ++d)
      if (x_.shape[d] < 1 || x_.shape[d] >= int64_t{1} << 30) return false;
    const int rows = x_.ndim - 2, columns = x_.ndim - 1;
    swapped = x_.strides[columns] != 1;
    const int along = swapped ? columns : rows;  // what lies a stride apart
    const int64_t C = x_.shape[swapped ? rows : columns];
    cast.x = x_.data;
    cast.R = static_cast<int>(x_.shape[along]), cast.C = static_cast<int>(C);
    cast.x_stride = x_.strides[along];
    cast.matrices = 1, cast.x_matrix = 0;
    if (x_.ndim == 3) {
      if (x_.shape[0] >= 1 << 16) return false;
      cast.matrices = static_cast<int>(x_.shape[0]), cast.x_matrix = x_.strides[0];
    }
    if ((swapped && x_.strides[rows] != 1) || C % 8 || cast.x_stride % 8 || cast.x_matrix % 8 || reinterpret_cast<uintptr_t>(x_.data) % 16)
      return false;
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
  int dims() const { return x_.ndim; }

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
    return object == Py_None || PyBool_Check(object);
  }

  bool read_outputs(PyObject* object) {
    if (object == Py_None) return straight_ = transposed_ = true;
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
    if (!text) return PyErr_Clear(), false;
    const std::string_view wanted(text, size);
    straight_ = wanted == "both" || wanted == "rows";
    transposed_ = wanted == "both" || wanted == "columns";
    return straight_ || transposed_;
  }

  Tensor x_{};
  bool straight_ = false, transposed_ = false;
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

// Puts the cast into torch's stream; peaks: elements of the memory for them, which becomes zeros.
inline bool run(const char* op, const Cast& cast, int index, int64_t peaks) {
  const Device& on = *device(index);
  void* stream;
  CurrentDevice current(index);
  if (!current_stream(index, &stream)) return false;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (peaks) {
    void* const first = cast.peaks ? cast.peaks : cast.peaks_t;
    if (!launched(op, cudaMemsetAsync(first, 0, 4 * peaks, cuda_stream))) return false;
    if (!launched(op, find_peaks(cast, cuda_stream))) return false;
    return launched(op, cast_vectors(cast, on.multiprocessors, cuda_stream));
  }
  return launched(op, (cast.scales == Scales::squares ? cast_squares : cast_row_blocks)(cast, on.multiprocessors, cuda_stream));
}

}  // namespace ao::casts
