// The table of a step for kernels that are not compiled here (ao_kernels/triton/steps.py): what the bindings of adam_step and lion_step check
// and read, on any device, as one tensor. In Python it takes 10 us a parameter.
#include <cstring>

#include "step_call.h"

namespace {

constexpr int64_t kColumns = 12;  // numel; addresses of p, g, and values and scales of three moments; offset, key, dither

// (any, the arguments of the op) -> (T, 12) int64 on the CPU, or NotImplemented where they would have to be changed or refused.
PyObject* table(PyObject* const* args, Py_ssize_t n_args, bool adam) {
  if (n_args < 2 || !PyList_CheckExact(args[1]) || PyList_GET_SIZE(args[1]) < 1) return ao::not_implemented();
  ao::StepCall call;
  ao::Tensor first;
  if (ao::read_tensor(PyList_GET_ITEM(args[1], 0), &first, ao::DeviceType::cuda)) call.type = ao::DeviceType::cuda;
  if (!(adam ? call.read_adam(args, n_args) : call.read_lion(args, n_args))) return ao::not_implemented();
  const int64_t shape[2] = {PyList_GET_SIZE(args[1]), kColumns};
  void* data;
  PyObject* const found = ao::new_tensor(2, shape, ao::DType::i64, &data);
  if (!found) return nullptr;
  int64_t* const rows = static_cast<int64_t*>(data);
  std::memset(rows, 0, sizeof(int64_t) * shape[0] * kColumns);
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const ao::StepTensor& t = call.tensors[i];
    int64_t* const row = rows + call.rows[i] * kColumns;
    row[0] = t.numel;
    row[1] = reinterpret_cast<int64_t>(t.p);
    row[2] = reinterpret_cast<int64_t>(t.g);
    for (int k = 0; k < 3; ++k) {
      row[3 + 2 * k] = reinterpret_cast<int64_t>(t.values[k]);
      row[4 + 2 * k] = reinterpret_cast<int64_t>(t.scales[k]);
    }
    row[9] = t.offset;
    row[10] = t.key;
    row[11] = t.dither;
  }
  return found;
}

PyObject* adam_step_table(PyObject*, PyObject* const* args, Py_ssize_t n_args) { return table(args, n_args, true); }
PyObject* lion_step_table(PyObject*, PyObject* const* args, Py_ssize_t n_args) { return table(args, n_args, false); }

}  // namespace

void register_step_table(pybind11::module_& m) {
  ao::add_fastcall(m, "adam_step_table", adam_step_table, "(0, the arguments of adam_step) -> (T, 12) int64 or NotImplemented");
  ao::add_fastcall(m, "lion_step_table", lion_step_table, "(0, the arguments of lion_step) -> (T, 12) int64 or NotImplemented");
}
