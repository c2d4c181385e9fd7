#include "cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace ao {
namespace {

// __builtin_cpu_supports reads cpuid and, for the AVX sets, also xgetbv: a set that the operating
// system does not save on a context switch counts as absent.
bool supported(Isa isa) {
  switch (isa) {
    case Isa::generic: return true;
#ifdef AO_HAVE_AVX2
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
#endif
#ifdef AO_HAVE_AVX512
    case Isa::avx512:
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef AO_HAVE_NEON
    case Isa::neon: return true;
#endif
    default: return false;
  }
}

constexpr Isa kOrder[] = {Isa::generic, Isa::neon, Isa::avx2, Isa::avx512};

Isa by_name(const std::string& name) {
  for (Isa isa : kOrder)
    if (name == isa_name(isa) && supported(isa)) return isa;
  std::string known;
  for (const std::string& each : available_isas()) known += " " + each;
  throw std::invalid_argument("instruction set '" + name + "' is not available here; available:" + known);
}

Isa initial() {
  if (const char* forced = std::getenv("AO_KERNELS_ISA")) return by_name(forced);
  Isa best = Isa::generic;
  for (Isa isa : kOrder)
    if (supported(isa)) best = isa;
  return best;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : kOrder)
    if (supported(isa)) names.push_back(isa_name(isa));
  return names;
}

Isa current_isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    default: return "generic";
  }
}

void set_isa(const std::string& name) { current().store(by_name(name)); }

}  // namespace ao
