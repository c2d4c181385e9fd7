// What a grid may do before the grids in front of it have ended (programmatic dependent launch).
//
// A grid of this module that may start early reads results of others only after wait_for_earlier_grids(), which returns when all
// of them have ended. Weights it could read at once, unless the grid in front of it writes them: a copy, or quantizing them again in
// place. A stream does not tell which grid is in front; a graph that is captured does. So grids are chained in captures only:
//
//   * none of this module's grids writes weights that another one reads, and
//   * each lets later grids start only when all before it have ended, or is itself chained to one that does so;
//
// so where the grid in front is one of this module's, all grids that could write weights have ended, and what they wrote is visible.
//
// A captured graph also tells which weights come next. The last grid of this module that was captured before asks for them to be brought
// into L2 when it has asked for all of its own: memory would else be idle while grids with little to read run in between.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace ao {

// What a grid brings into L2 for a later one.
struct Next {
  const void* data;
  uint32_t bytes;
};

// Whether the next grid of this stream follows, in a graph that this thread captures, the last one that it told of.
bool is_chained(cudaStream_t stream);

// Changes what a grid that is a node of a graph brings into L2.
using SetNext = cudaError_t(cudaGraphNode_t node, const Next& next);

// To be called when a grid of this module has been put into a stream: that it reads `bytes` of weights, and how it is told of the next one.
void remember_grid(cudaStream_t stream, const void* weights, int64_t bytes, SetNext* set_next);

// SetNext for kernels with COUNT parameters, of which the last one is Args with a member `next`.
template <class Args, int COUNT>
cudaError_t set_next(cudaGraphNode_t node, const Next& next) {
  cudaKernelNodeParams node_params = {};
  if (const cudaError_t error = cudaGraphKernelNodeGetParams(node, &node_params)) return error;
  void* params[COUNT];
  for (int i = 0; i < COUNT; ++i) params[i] = node_params.kernelParams[i];
  Args args = *static_cast<const Args*>(params[COUNT - 1]);
  args.next = next;
  params[COUNT - 1] = &args;
  node_params.kernelParams = params;
  return cudaGraphKernelNodeSetParams(node, &node_params);
}

}  // namespace ao
