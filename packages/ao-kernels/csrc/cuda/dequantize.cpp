// Binding of dequantize.h.
#include "cuda/dequantize.h"

#include "cuda/weight_only_call.h"

// Reads the arguments of a weight; x is an activation of its dtype.
static bool read(ao::LinearCall& call, PyObject* const* args, int64_t bits, int64_t group_size, int64_t block_n) {
  PyObject* const none = PyLong_FromLong(0);
  const bool good = call.read(none, args[0], args[1], args[2], args[3], bits, group_size, Py_None, block_n);
  Py_DECREF(none);
  return good;
}

static PyObject* dequantize(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call = ao::cuda_call();
  int64_t bits, group_size, block_n = 1;
  if (n_args < 6 || n_args > 7 || !ao::read_int(args[4], &bits) || bits < 0 || bits > 8 ||
      !ao::read_int(args[5], &group_size) || (n_args == 7 && !ao::read_int(args[6], &block_n)))
    return ao::not_implemented();
  bool good = read(call, args, bits, group_size, block_n);
  for (const int kind : {ao::kE4m3, ao::kE5m2}) good = good || (!bits && read(call, args, kind, group_size, block_n));
  ao::LinearArgs& a = call.args;
  if (!good || a.x_dtype == ao::DType::f64 || reinterpret_cast<uintptr_t>(a.codes) % 4) return ao::not_implemented();
  const int64_t shape[2] = {a.N, a.K};
  PyObject* w = ao::new_tensor(2, shape, a.x_dtype, &a.y, ao::DeviceType::cuda, call.x.device);
  if (!w || a.N == 0) return w;
  void* stream;
  ao::CurrentDevice current(call.x.device);
  if (ao::current_stream(call.x.device, &stream) &&
      ao::launched("dequantize", ao::dequantize(a, static_cast<cudaStream_t>(stream))))
    return w;
  Py_DECREF(w);
  return nullptr;
}

void register_dequantize(pybind11::module_& m) {
  ao::add_fastcall(m, "dequantize", dequantize,
                   "(x, codes, scale, zero, bits, group_size, block_n=1) -> weight in the dtype of x, or NotImplemented");
}
