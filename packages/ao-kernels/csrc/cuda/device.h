// What host code asks of a CUDA device. Nothing here allocates or synchronises, so that all of it works while a
// CUDA graph is captured.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace ao {

struct Device {
  bool usable = false;     // it exists, and the module holds code for it
  int multiprocessors = 0;
  int capability = 0;      // 90 for 9.0
  int shared_bytes = 0;    // of a block, at most
  int code = 0;            // the compute capability that the module's code for it was compiled for: __CUDA_ARCH__ / 10
  bool early_launch = false;  // programmatic dependent launch, in captured graphs too (CUDA 12.3)
};

// Looked up once a device; the pointer lives as long as the process.
const Device* device(int index);

// Why no kernel runs on this device, or "".
std::string device_refusal(int index);

// Makes a device current and restores the one before.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = -1;  // -1: nothing to restore
};

// False, with a RuntimeError that names the op set, where the launch failed.
bool launched(const char* op, cudaError_t error);

}  // namespace ao
