// How the kernels of this module that may start early are launched.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/chain.h"

namespace ao {

// Lets a kernel have so much dynamic shared memory on the current device. It is asked for once a device; twice does no harm.
template <auto KERNEL>
cudaError_t allow_shared_memory(int bytes) {
  static std::atomic<uint64_t> allowed{0};  // a bit a device
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const uint64_t bit = uint64_t{1} << device % 64;
  if (allowed.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  if (const cudaError_t error = cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return error;
  allowed.fetch_or(bit, std::memory_order_relaxed);
  return cudaSuccess;
}

class Grid {
 public:
  Grid(dim3 blocks, int threads, size_t shared_bytes, cudaStream_t stream) {
    config_.gridDim = blocks;
    config_.blockDim = dim3(threads);
    config_.dynamicSmemBytes = shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
  }
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  // x times y blocks share their memory.
  void cluster(int x, int y = 1) {
    cudaLaunchAttribute& each = attributes_[config_.numAttrs++];
    each.id = cudaLaunchAttributeClusterDimension;
    each.val.clusterDim = {static_cast<unsigned>(x), static_cast<unsigned>(y), 1};
  }

  // It may start before the grids in front of it have ended (programmatic dependent launch).
  void early() {
    cudaLaunchAttribute& each = attributes_[config_.numAttrs++];
    each.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    each.val.programmaticStreamSerializationAllowed = 1;
  }

  template <class... Parameters>
  cudaError_t start(void (*kernel)(Parameters...), const Parameters&... arguments) {
    const cudaError_t error = cudaLaunchKernelEx(&config_, kernel, arguments...);
    if (error == cudaSuccess) remember_grid(config_.stream);
    return error;
  }

 private:
  cudaLaunchConfig_t config_ = {};
  cudaLaunchAttribute attributes_[2];
};

}  // namespace ao
