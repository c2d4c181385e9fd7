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
#pragma once
#include <cuda_runtime_api.h>

namespace ao {

// Whether the next grid of this stream follows, in a graph that this thread captures, the last one that it told of.
bool is_chained(cudaStream_t stream);

// To be called when a grid of this module has been put into a stream.
void remember_grid(cudaStream_t stream);

}  // namespace ao
