#include "cuda/device.h"

#include <Python.h>

#include <array>
#include <mutex>

#include "cuda/probe.h"

namespace ao {
namespace {

constexpr int kMostDevices = 64;

Device look_up(int index) {
  Device found;
  CurrentDevice current(index);
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index) ==
          cudaSuccess) {
    found.capability = 10 * major + minor;
    found.code = code_for_current_device();
    found.usable = found.code > 0;
    int driver = 0;
    found.early_launch = found.code >= 90 && cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030;
  }
  cudaGetLastError();  // a device without code leaves an error that is answered here
  return found;
}

}  // namespace

const Device* device(int index) {
  static std::array<Device, kMostDevices> devices;
  static std::array<std::once_flag, kMostDevices> flags;
  static const Device none;
  if (index < 0 || index >= kMostDevices) return &none;
  std::call_once(flags[index], [index] { devices[index] = look_up(index); });
  return &devices[index];
}

std::string device_refusal(int index) {
  const Device* found = device(index);
  if (found->usable) return "";
  if (!found->capability) return "CUDA device " + std::to_string(index) + " cannot be used";
  return "ao_kernels._cuda was built without code for compute capability " +
         std::to_string(found->capability / 10) + "." + std::to_string(found->capability % 10);
}

CurrentDevice::CurrentDevice(int index) {
  int now = index;
  if (cudaGetDevice(&now) == cudaSuccess && now != index && cudaSetDevice(index) == cudaSuccess)
    before_ = now;
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

bool launched(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  PyErr_Format(PyExc_RuntimeError, "%s: the CUDA kernel could not be launched: %s", op,
               cudaGetErrorString(error));
  return false;
}

}  // namespace ao
