// Runs a step on the threads of parallel.h, without the GIL.
#pragma once
#include <algorithm>

#include "cpu_features.h"
#include "parallel.h"
#include "step_call.h"

namespace ao {

// Blocks [first, last) of a parameter.
using StepKernel = void(const StepOptions& options, const StepTensor& tensor, int64_t first, int64_t last);

inline PyObject* run_step(const StepCall& call, PyObject* threads, StepKernel* kernel) {
  int64_t n_threads;
  if (!read_int(threads, &n_threads)) return not_implemented();
  const StepOptions& o = call.options;
  std::vector<int64_t> ends;  // blocks up to and with each tensor
  int64_t blocks = 0;
  for (const StepTensor& t : call.tensors) ends.push_back(blocks += (t.numel + o.n - 1) / o.n);
  PyThreadState* const state = PyEval_SaveThread();
  constexpr int64_t kPiece = 1 << 15;  // elements
  parallel_for(blocks, std::max<int64_t>(1, kPiece / o.n), static_cast<int>(n_threads), [&](int64_t begin, int64_t end) {
    size_t which = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    while (begin < end) {
      const int64_t first = which ? ends[which - 1] : 0, last = std::min(end, ends[which]);
      kernel(o, call.tensors[which], begin - first, last - first);
      begin = last;
      ++which;
    }
  });
  PyEval_RestoreThread(state);
  Py_RETURN_NONE;
}

}  // namespace ao
