// Splits a range over threads. No OpenMP is linked: see docs/decisions/0003-threads.md.
#pragma once
#include <cstdint>
#include <string>

namespace ao {

using RangeBody = void (*)(void* context, int64_t begin, int64_t end);

// Calls body(begin, end) for consecutive pieces of [0, n) of at most `grain`, on up to n_threads
// threads, the caller among them, and returns when all are done. Which thread gets which piece is
// not fixed (a thread that starts late takes fewer); a body must compute the same
// bits for an item whichever piece it is in. The body must not throw and must not touch Python.
void parallel_for(int64_t n, int64_t grain, int n_threads, void* context, RangeBody body);

template <class Body>
void parallel_for(int64_t n, int64_t grain, int n_threads, Body&& body) {
  parallel_for(n, grain, n_threads, &body, [](void* context, int64_t begin, int64_t end) {
    (*static_cast<decltype(&body)>(context))(begin, end);
  });
}

// "openmp" (the threads of the OpenMP runtime that torch has loaded) or "pool" (our own).
std::string thread_backend();
// "openmp", "pool" or "auto"; throws std::invalid_argument where it does not exist.
void set_thread_backend(const std::string& name);

}  // namespace ao
