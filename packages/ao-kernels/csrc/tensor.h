// torch tensors without torch headers, through the DLPack C exchange interface
// (torch.Tensor.__dlpack_c_exchange_api__, torch >= 2.10): about 20 ns to read a tensor from C++,
// where .data_ptr(), .shape, .dtype, .is_contiguous() from Python take 200 ns.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "types.h"

namespace ao {

struct Tensor {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t ndim;
  DType dtype;
  int32_t device;  // which of the devices of its type

  int64_t size(int dim) const { return shape[dim < 0 ? dim + ndim : dim]; }
  bool contiguous() const;
  // Contiguous matrix of this size.
  bool is_matrix(int64_t rows, int64_t columns) const {
    return ndim == 2 && shape[0] == rows && shape[1] == columns && contiguous();
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Called once at import; throws when this torch has no exchange interface.
void bind_torch();

// False when `object` is not exactly torch.Tensor or torch.nn.Parameter, is not on a device of this type, or
// cannot be read (functorch wrappers). The view lives as long as `object`. No Python error is left set.
bool read_tensor(PyObject* object, Tensor* out, DeviceType type = DeviceType::cpu);

// A new uninitialised contiguous tensor, from torch's allocator; nullptr with a Python error set when it fails.
PyObject* new_tensor(int32_t ndim, const int64_t* shape, DType dtype, void** data,
                     DeviceType type = DeviceType::cpu, int32_t device = 0);

// Memory that torch's allocator lends, without a Python object around it. Work that is in torch's current stream when this ends
// may go on using it: the allocator gives it to nobody else on another stream before that is done.
class Workspace {
 public:
  Workspace(int64_t bytes, DeviceType type, int32_t device);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }  // nullptr with a Python error set where there was none to lend

 private:
  void* data_ = nullptr;
  void* lent_ = nullptr;
};

// The stream on which torch works on this CUDA device now. False with a Python error set when it fails.
bool current_stream(int32_t device, void** stream);

// A Python int, bool excluded. False (no Python error left set) for anything else.
bool read_int(PyObject* object, int64_t* out);

// The argument at `index` of a fastcall, or None where the caller left it out.
inline PyObject* argument(PyObject* const* args, Py_ssize_t n_args, Py_ssize_t index) {
  return index < n_args ? args[index] : Py_None;
}

inline PyObject* not_implemented() {
  Py_INCREF(Py_NotImplemented);
  return Py_NotImplemented;
}

using FastCall = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
// Adds a METH_FASTCALL function (60 ns a call; a pybind11 function takes 300 to 500 ns).
void add_fastcall(pybind11::module_& m, const char* name, FastCall function, const char* doc);

}  // namespace ao
