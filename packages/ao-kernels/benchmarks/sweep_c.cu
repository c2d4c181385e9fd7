#include <vector>
#include "sweep_weight_only.cuh"

namespace ao {
#define AO_X(n) namespace large##n { struct Variant; extern const Variant kVariantsX##n[]; }
AO_X(1) AO_X(2) AO_X(3)
}
namespace ao::large {
extern const Variant kVariantsA[], kVariantsB[], kVariantsD[];

const std::vector<Variant>& all() {
  static const std::vector<Variant> found = [] {
    std::vector<Variant> v(kVariantsA, kVariantsA + 8);
    v.insert(v.end(), kVariantsB, kVariantsB + 8);
    v.insert(v.end(), kVariantsD, kVariantsD + 9);
    const auto diagnostic = [&](const void* from, int n) {
      const auto* first = static_cast<const Variant*>(from);
      for (int i = 0; i < 3; ++i) {
        v.push_back(first[i]);
        v.back().bits = 100 + n;
      }
    };
    diagnostic(ao::large1::kVariantsX1, 1), diagnostic(ao::large2::kVariantsX2, 2), diagnostic(ao::large3::kVariantsX3, 3);
    return v;
  }();
  return found;
}

extern "C" int sweep_count() { return all().size(); }
extern "C" void sweep_info(int v, int* out) {
  Variant i = all()[v];
  out[0] = i.bits, out[1] = i.consumers, out[2] = i.tokens, out[3] = i.stages, out[4] = i.ctas;
}
extern "C" int sweep_launch(int v, int split, const void* x, const void* codes, const void* scale, void* y, int M, int N, int K, int G,
                            int multiprocessors, void* stream) {
  Variant i = all()[v];
  if (i.bits >= 100) i.bits = 4;
  Launch l;
  l.multiprocessors = multiprocessors;
  l.early = true;
  l.stream = static_cast<cudaStream_t>(stream);
  l.args = {.scale = scale, .zero = nullptr, .bias = nullptr, .y = static_cast<__nv_bfloat16*>(y), .M = M, .N = N, .K = K, .G = G,
            .scale_stride = G, .group_size = G == 1 ? K : 128, .block_n = 1, .split = split,
            .scale_dtype = i.bits == 4 ? DType::bf16 : DType::f32, .bias_dtype = DType::bf16, .vector_scales = true,
            .chained = is_chained(l.stream)};
  const int row_bytes = i.bits == 4 ? K / 2 : K;
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, x, K, M, 2 * K, 64, i.tokens, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, codes, row_bytes, N, row_bytes, stage_code_bytes(i.bits), 64 * i.consumers,
                  i.bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B))
    return 999;
  return i.launch(l);
}
}  // namespace ao::large
