// Binding of dequantize.h.
#include "cuda/dequantize.h"

#include "cuda/weight_only_call.h"

static PyObject* dequantize(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t bits, group_size;
  if (n_args != 6 || !ao::read_int(args[4], &bits) || bits < 0 || bits > 8 || !ao::read_int(args[5], &group_size))
    return ao::not_implemented();
  PyObject* const none = PyLong_FromLong(0);
  const bool good = call.read(none, args[0], args[1], args[2], args[3], bits, group_size, Py_None);
  Py_DECREF(none);
  ao::LinearArgs& a = call.args;
  if (!good || a.x_dtype == ao::DType::f64 || reinterpret_cast<uintptr_t>(a.codes) % 4) return ao::not_implemented();
  const int64_t shape[2] = {a.N, a.K};
  PyObject* w = ao::new_tensor(2, shape, a.x_dtype, &a.y, ao::DeviceType::cuda, call.x.device);
  if (!w || a.N == 0) return w;
  void* stream;
  ao::CurrentDevice current(call.x.device);
  if (ao::current_stream(call.x.device, &stream) &&
      ao::launched("dequantize", ao::dequantize(a, ao::device(call.x.device)->multiprocessors,
                                                static_cast<cudaStream_t>(stream))))
    return w;
  Py_DECREF(w);
  return nullptr;
}

void register_dequantize(pybind11::module_& m) {
  ao::add_fastcall(m, "dequantize", dequantize,
                   "(x, codes, scale, zero, bits, group_size) -> weight in the dtype of x, or NotImplemented");
}
