#include "cuda/chain.h"

namespace ao {
namespace {

struct Captured {
  unsigned long long capture = 0;
  cudaGraphNode_t node = nullptr;
};

thread_local Captured g_last;

// Leaves no error behind that somebody else would find.
bool succeeded(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess;
}

// The only node that the next one of this stream would follow; no node outside of captures, or where it would follow several.
Captured in_front(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (!succeeded(cudaStreamIsCapturing(stream, &status)) || status != cudaStreamCaptureStatusActive) return {};
  Captured found;
  const cudaGraphNode_t* nodes = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t n_nodes = 0;
#if CUDART_VERSION >= 13000
  const auto get = cudaStreamGetCaptureInfo;
#else
  const auto get = cudaStreamGetCaptureInfo_v3;
#endif
  if (!succeeded(get(stream, &status, &found.capture, nullptr, &nodes, &edges, &n_nodes)) || n_nodes != 1) return {};
  found.node = nodes[0];
  return found;
}

}  // namespace

bool is_chained(cudaStream_t stream) {
  if (!g_last.node) return false;  // nothing was captured: the usual case, without a call
  const Captured found = in_front(stream);
  return found.node && found.node == g_last.node && found.capture == g_last.capture;
}

void remember_grid(cudaStream_t stream) { g_last = in_front(stream); }

}  // namespace ao
