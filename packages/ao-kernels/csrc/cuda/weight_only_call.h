// Binding of the weight-only linear ops on CUDA tensors: as linear_call.h, on torch's current stream of the device.
#pragma once
#include "cuda/device.h"
#include "cuda/weight_only_small.h"
#include "linear_call.h"

namespace ao {

inline LinearCall cuda_call() {
  LinearCall call;
  call.device_type = DeviceType::cuda;
  return call;
}

template <int BITS>
PyObject* run_weight_only(const char* op, LinearCall& call) {
  const LinearArgs& a = call.args;
  if (a.x_dtype == DType::f32) return not_implemented();
  const Device& at = *device(call.x.device);
  const small::Shape shape{a.M, a.N, a.K, a.group_size, BITS ? BITS : 8, a.zero != nullptr};
  if (!small::takes(shape, at) || !small::takes_memory(a)) return not_implemented();
  PyObject* y = call.new_result();
  if (!y || a.M == 0 || a.N == 0) return y;
  const small::Plan& plan = small::remembered_plan(shape, at);
  void* stream;
  CurrentDevice current(call.x.device);
  if (current_stream(call.x.device, &stream) &&
      launched(op, small::launch<BITS>(a, at, plan, static_cast<cudaStream_t>(stream))))
    return y;
  Py_DECREF(y);
  return nullptr;
}

}  // namespace ao
