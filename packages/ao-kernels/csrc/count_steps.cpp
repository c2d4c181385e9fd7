// The counts of steps that optimizers keep, one a parameter: torch takes 2.5 us to add one to each.
#include <vector>

#include "tensor.h"

// (counts) -> list of float, or NotImplemented where they are not 0-d float32 on the CPU; nothing is changed then.
static PyObject* count_steps(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  if (n_args != 1 || !PyList_CheckExact(args[0])) return ao::not_implemented();
  const Py_ssize_t count = PyList_GET_SIZE(args[0]);
  std::vector<float*> counts;
  counts.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    ao::Tensor t;
    if (!ao::read_tensor(PyList_GET_ITEM(args[0], i), &t) || t.ndim != 0 || t.dtype != ao::DType::f32) return ao::not_implemented();
    counts.push_back(t.as<float>());
  }
  PyObject* const found = PyList_New(count);
  if (!found) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const value = PyFloat_FromDouble(*counts[i] + 1);
    if (!value) {
      Py_DECREF(found);
      return nullptr;
    }
    PyList_SET_ITEM(found, i, value);
  }
  for (float* each : counts) *each += 1;
  return found;
}

void register_count_steps(pybind11::module_& m) {
  ao::add_fastcall(m, "count_steps", count_steps, "(counts) -> the counts, each one more than before, or NotImplemented");
}
