#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#ifdef __linux__
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#endif

namespace ao {
namespace {

struct Job {
  RangeBody body;
  void* context;
  int64_t n;
  int64_t grain;
  std::atomic<int64_t> next{0};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      body(context, begin, std::min(n, begin + grain));
    }
  }
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// ---------------------------------------------------------------- own pool

class Pool {
 public:
  // False when another thread is using the pool: the caller then works alone, so that concurrent callers
  // can neither wait for each other nor oversubscribe the machine.
  bool run(Job& job, int n_workers) {
    if (!busy_.try_lock()) return false;
    while (n_started_ < n_workers) start(n_started_++);
    job_ = &job;
    active_.store(n_workers, std::memory_order_relaxed);
    gate_.store(0, std::memory_order_release);
    ticket_.fetch_add(1, std::memory_order_release);
    ticket_.notify_all();
    job.work();
    // Workers that are inside are waited for; one that has not come yet finds the gate closed. A worker whose
    // core is taken (torch's OpenMP threads spin for milliseconds) so costs nothing but its help.
    gate_.fetch_or(kClosed, std::memory_order_acq_rel);
    while (gate_.load(std::memory_order_acquire) != kClosed) relax();
    busy_.unlock();
    return true;
  }

 private:
  void start(int index) {
    const uint32_t seen = ticket_.load(std::memory_order_relaxed);
    std::thread([this, index, seen] { loop(index, seen); }).detach();
  }

  // Detached workers sleep in the kernel when the process exits; the pool is never destroyed.
  void loop(int index, uint32_t seen) {
    for (;;) {
      wait(seen);
      seen = ticket_.load(std::memory_order_acquire);
      if (index >= active_.load(std::memory_order_relaxed) || !enter()) continue;
      job_->work();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  bool enter() {
    uint32_t inside = gate_.load(std::memory_order_acquire);
    while (!(inside & kClosed))
      if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  void wait(uint32_t seen) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(30);
    do {
      for (int i = 0; i < 64; ++i) {
        if (ticket_.load(std::memory_order_acquire) != seen) return;
        relax();
      }
    } while (Clock::now() < until);
    ticket_.wait(seen, std::memory_order_acquire);
  }

  static constexpr uint32_t kClosed = 1u << 31;

  std::mutex busy_;
  std::atomic<uint32_t> ticket_{0};
  std::atomic<uint32_t> gate_{kClosed};  // workers inside the current job, and whether more may enter
  std::atomic<int> active_{0};
  Job* job_ = nullptr;
  int n_started_ = 0;
};

std::atomic<Pool*> g_pool{nullptr};
std::atomic<bool> g_forked{false};

Pool& pool() {
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current) return *current;
  Pool* fresh = new Pool;
  if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

// ---------------------------------------------------------------- torch's OpenMP threads

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
};

#ifdef __linux__
int find_gomp(dl_phdr_info* info, size_t, void* out) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* base = slash ? slash + 1 : info->dlpi_name;
  if (!std::strstr(base, "gomp")) return 0;
  std::string& found = *static_cast<std::string*>(out);
  const bool of_torch = std::strstr(info->dlpi_name, "/torch") != nullptr;
  if (found.empty() || of_torch) found = info->dlpi_name;
  return of_torch;
}

OpenMP resolve() {
  OpenMP omp;
  std::string path;
  dl_iterate_phdr(find_gomp, &path);
  if (path.empty()) return omp;
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return omp;
  omp.parallel = reinterpret_cast<decltype(omp.parallel)>(dlsym(library, "GOMP_parallel"));
  return omp;
}
#else
OpenMP resolve() { return {}; }
#endif

const OpenMP& openmp() {
  static const OpenMP found = resolve();
  return found;
}

std::atomic<bool> g_want_openmp{true};

void after_fork() {
  // The child has none of the parent's threads: a new pool starts its own, and OpenMP, which
  // cannot restart its own after fork, is left alone.
  g_pool.store(nullptr);
  g_forked.store(true);
}

bool use_openmp() { return g_want_openmp.load(std::memory_order_relaxed) && !g_forked.load() && openmp().parallel; }

[[maybe_unused]] const bool g_registered = [] {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, after_fork);
#endif
  return true;
}();

}  // namespace

void parallel_for(int64_t n, int64_t grain, int n_threads, void* context, RangeBody body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t n_pieces = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(std::max(n_threads, 1), n_pieces));
  Job job{body, context, n, grain};
  if (threads == 1) return job.work();
  if (use_openmp()) {
    openmp().parallel([](void* j) { static_cast<Job*>(j)->work(); }, &job, threads, 0);
  } else if (!pool().run(job, threads - 1)) {
    job.work();
  }
}

std::string thread_backend() { return use_openmp() ? "openmp" : "pool"; }

void set_thread_backend(const std::string& name) {
  if (name != "openmp" && name != "pool" && name != "auto")
    throw std::invalid_argument("thread backend '" + name + "': use 'openmp', 'pool' or 'auto'");
  if (name == "openmp" && (g_forked.load() || !openmp().parallel))
    throw std::invalid_argument("thread backend 'openmp': this process has no OpenMP runtime that can be used");
  g_want_openmp.store(name != "pool");
}

}  // namespace ao
