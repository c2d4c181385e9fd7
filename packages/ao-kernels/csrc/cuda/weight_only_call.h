// Binding of the weight-only linear ops on CUDA tensors: as linear_call.h, on torch's current stream of the device.
#pragma once
#include "cuda/device.h"
#include "cuda/weight_only_large.h"
#include "cuda/weight_only_mid.h"
#include "cuda/weight_only_small.h"
#include "linear_call.h"

namespace ao {

inline LinearCall cuda_call() {
  LinearCall call;
  call.device_type = DeviceType::cuda;
  return call;
}

// The result of an op whose kernel `launch(args, device, stream)` starts.
template <class Launch>
PyObject* run_on_device(const char* op, LinearCall& call, Launch&& launch) {
  PyObject* y = call.new_result();
  if (!y || call.args.M == 0 || call.args.N == 0) return y;
  void* stream;
  CurrentDevice current(call.x.device);
  if (current_stream(call.x.device, &stream) &&
      launched(op, launch(call.args, *device(call.x.device), static_cast<cudaStream_t>(stream))))
    return y;
  Py_DECREF(y);
  return nullptr;
}

template <int BITS>
PyObject* run_weight_only(const char* op, LinearCall& call) {
  const LinearArgs& a = call.args;
  if (a.x_dtype == DType::f32) return not_implemented();
  const Device& at = *device(call.x.device);
  if ((BITS == 4 || BITS <= 0) && a.M > small::kMostTokens) {
    const int most = a.n_threads;  // tokens, 0 for any: what was measured to be faster elsewhere goes there
    if ((most > 0 && a.M > most) || !large::takes(a, at)) return not_implemented();
    return run_on_device(op, call, large::launch);
  }
  const small::Shape shape{a.M, a.N, a.K, a.group_size, BITS > 0 ? BITS : 8, a.zero != nullptr};
  if (!small::takes(shape, at) || !small::takes_memory(a)) return not_implemented();
  if (BITS == 4 && mid::takes(a, at)) return run_on_device(op, call, mid::launch);
  const small::Plan& plan = small::remembered_plan(shape, at);
  return run_on_device(op, call, [&](const LinearArgs& args, const Device& device, cudaStream_t stream) {
    return small::launch<BITS>(args, device, plan, stream);
  });
}

}  // namespace ao
