#include "tensor.h"

#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace ao {
namespace {

// The DLPack 1.x exchange interface (https://dmlc.github.io/dlpack), only the parts that are used.
struct DlVersion { uint32_t major, minor; };
struct DlDevice { int32_t type, index; };
struct DlType { uint8_t code, bits; uint16_t lanes; };
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DlManaged;
using SetError = void (*)(void*, const char*, const char*);
struct DlExchange {
  DlVersion version;
  void* previous;
  int (*allocate)(DlTensor*, DlManaged**, void*, SetError);
  int (*managed_from_object)(void*, DlManaged**);
  int (*object_from_managed)(DlManaged*, void**);
  int (*tensor_from_object)(void*, DlTensor*);
  int (*current_stream)(int32_t, int32_t, void**);
};
struct DlManaged {
  DlVersion version;
  void* manager;
  void (*deleter)(DlManaged*);
  uint64_t flags;
  DlTensor tensor;
};

constexpr int32_t kCpu = 1, kCuda = 2;
constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kE4m3fn = 10, kE5m2 = 12;

const DlExchange* g_exchange = nullptr;
PyTypeObject* g_tensor = nullptr;
PyTypeObject* g_parameter = nullptr;

int32_t dl_device(DeviceType type) { return type == DeviceType::cuda ? kCuda : kCpu; }

DType dtype_of(DlType t) {
  if (t.lanes != 1) return DType::other;
  switch (t.code << 8 | t.bits) {
    case kFloat << 8 | 32: return DType::f32;
    case kFloat << 8 | 16: return DType::f16;
    case kFloat << 8 | 64: return DType::f64;
    case kBfloat << 8 | 16: return DType::bf16;
    case kInt << 8 | 8: return DType::i8;
    case kUint << 8 | 8: return DType::u8;
    case kInt << 8 | 32: return DType::i32;
    case kInt << 8 | 64: return DType::i64;
    case kE4m3fn << 8 | 8: return DType::e4m3;
    case kE5m2 << 8 | 8: return DType::e5m2;
    default: return DType::other;
  }
}

DlType dl_type(DType dtype) {
  const uint8_t bits = static_cast<uint8_t>(8 * dtype_bytes(dtype));
  switch (dtype) {
    case DType::bf16: return {kBfloat, bits, 1};
    case DType::u8: return {kUint, bits, 1};
    case DType::e4m3: return {kE4m3fn, bits, 1};
    case DType::e5m2: return {kE5m2, bits, 1};
    case DType::i8: case DType::i32: case DType::i64: return {kInt, bits, 1};
    default: return {kFloat, bits, 1};
  }
}

void set_python_error(void*, const char*, const char* message) {
  const PyGILState_STATE state = PyGILState_Ensure();
  PyErr_SetString(PyExc_RuntimeError, message);
  PyGILState_Release(state);
}

// nullptr with a Python error set when it fails.
DlManaged* allocate(int32_t ndim, const int64_t* shape, DType dtype, DeviceType type, int32_t device) {
  DlTensor prototype{nullptr, {dl_device(type), device}, ndim, dl_type(dtype),
                     const_cast<int64_t*>(shape), nullptr, 0};
  DlManaged* managed = nullptr;
  return g_exchange->allocate(&prototype, &managed, nullptr, set_python_error) == 0 ? managed : nullptr;
}

}  // namespace

bool Tensor::contiguous() const {
  int64_t expected = 1;
  bool dense = true;
  for (int d = ndim - 1; d >= 0; --d) {
    dense = dense && (shape[d] == 1 || strides[d] == expected);
    expected *= shape[d];
  }
  return dense || expected == 0;
}

void bind_torch() {
  const py::object torch = py::module_::import("torch");
  const py::object tensor = torch.attr("Tensor");
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__"))
    throw std::runtime_error("this torch has no torch.Tensor.__dlpack_c_exchange_api__; use torch >= 2.11");
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* found =
      static_cast<const DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) throw py::error_already_set();
  if (found->version.major != 1 || !found->tensor_from_object)
    throw std::runtime_error("torch's DLPack exchange interface is not version 1");
  g_exchange = found;
  // Both types live as long as torch, which is never unloaded.
  g_tensor = reinterpret_cast<PyTypeObject*>(tensor.ptr());
  g_parameter = reinterpret_cast<PyTypeObject*>(torch.attr("nn").attr("Parameter").ptr());
}

bool read_tensor(PyObject* object, Tensor* out, DeviceType device_type) {
  PyTypeObject* type = Py_TYPE(object);
  if (type != g_tensor && type != g_parameter) return false;
  DlTensor t;
  if (g_exchange->tensor_from_object(object, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.device.type != dl_device(device_type)) return false;
  *out = Tensor{static_cast<char*>(t.data) + t.byte_offset, t.shape, t.strides, t.ndim,
                dtype_of(t.dtype), t.device.index};
  return true;
}

PyObject* new_tensor(int32_t ndim, const int64_t* shape, DType dtype, void** data, DeviceType type,
                     int32_t device) {
  DlManaged* const managed = allocate(ndim, shape, dtype, type, device);
  if (!managed) return nullptr;
  *data = managed->tensor.data;
  void* object = nullptr;
  if (g_exchange->object_from_managed(managed, &object) != 0) return nullptr;
  return static_cast<PyObject*>(object);
}

Workspace::Workspace(int64_t bytes, DeviceType type, int32_t device) {
  DlManaged* const managed = allocate(1, &bytes, DType::u8, type, device);
  if (!managed) return;
  data_ = managed->tensor.data;
  lent_ = managed;
}

Workspace::~Workspace() {
  auto* const managed = static_cast<DlManaged*>(lent_);
  if (managed && managed->deleter) managed->deleter(managed);
}

bool current_stream(int32_t device, void** stream) {
  if (g_exchange->current_stream && g_exchange->current_stream(kCuda, device, stream) == 0) return true;
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "torch gave no current CUDA stream");
  return false;
}

bool read_int(PyObject* object, int64_t* out) {
  if (!PyLong_CheckExact(object)) return false;
  *out = PyLong_AsLongLong(object);
  if (*out == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return true;
}

void add_fastcall(py::module_& m, const char* name, FastCall function, const char* doc) {
  // The interpreter keeps a pointer to the definition for the life of the process.
  auto* definition = new PyMethodDef{
      name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
  PyObject* callable = PyCFunction_NewEx(definition, nullptr, nullptr);
  if (!callable || PyModule_AddObject(m.ptr(), name, callable) != 0) throw py::error_already_set();
}

}  // namespace ao
