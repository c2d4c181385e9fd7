// Read-only memory bandwidth: the denominator of the weight-bound benchmarks.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include <cstdint>
#if AO_ISA == AO_IS_avx512 || AO_ISA == AO_IS_avx2
#include <immintrin.h>
#endif

namespace ao::AO_ISA_NAMESPACE {

uint64_t read_sum(const uint8_t* data, int64_t bytes) {
  uint64_t total = 0;
#if AO_ISA == AO_IS_avx512
  __m512i sums[8] = {};
  for (int64_t i = 0; i + 512 <= bytes; i += 512)
    for (int j = 0; j < 8; ++j)
      sums[j] = _mm512_xor_si512(sums[j], _mm512_loadu_si512(data + i + 64 * j));
  for (int j = 0; j < 8; ++j) total ^= static_cast<uint64_t>(_mm512_reduce_add_epi64(sums[j]));
#else
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  for (int64_t i = 0; i < bytes / 8; ++i) total ^= words[i];
#endif
  return total;
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include <atomic>

#include "cpu_features.h"
#include "parallel.h"
#include "tensor.h"

using ReadSum = uint64_t(const uint8_t*, int64_t);
AO_BY_ISA(ReadSum, read_sum)

namespace py = pybind11;

static uint64_t read_memory(uintptr_t address, int64_t bytes, int n_threads) {
  const auto* data = reinterpret_cast<const uint8_t*>(address);
  std::atomic<uint64_t> total{0};
  ReadSum* sum = ao::read_sum_for(ao::current_isa());
  const int64_t grain = (bytes / n_threads / 8 + 4095) / 4096 * 4096;
  ao::parallel_for(bytes, grain, n_threads, [&](int64_t begin, int64_t end) {
    total.fetch_xor(sum(data + begin, end - begin), std::memory_order_relaxed);
  });
  return total.load();
}

void register_bandwidth(py::module_& m) {
  m.def("read_memory", &read_memory, py::arg("address"), py::arg("bytes"), py::arg("n_threads"),
        py::call_guard<py::gil_scoped_release>(),
        "Reads every byte once; time it to get the read bandwidth. Returns a checksum.");
}

#endif
