#include <cstring>
#include <vector>

#include "sweep_weight_only.cuh"
namespace ao {
#define AO_X(n) namespace large##n { struct Variant; const Variant* variants_x(int&); }
AO_X(1) AO_X(2) AO_X(4) AO_X(5)
}
namespace ao::large {
const Variant* variants_a(int&);
const Variant* variants_b(int&);
const Variant* variants_e(int&);
const Variant* variants_p(int&);

const std::vector<Variant>& all() {
  static const std::vector<Variant> found = [] {
    std::vector<Variant> v;
    const auto add = [&](const void* (*from)(int&)) {
      int n;
      const auto* first = static_cast<const Variant*>(from(n));
      v.insert(v.end(), first, first + n);
    };
    add([](int& n) -> const void* { return variants_a(n); });
    add([](int& n) -> const void* { return variants_e(n); });
    add([](int& n) -> const void* { return variants_b(n); });
    add([](int& n) -> const void* { return variants_p(n); });
    add([](int& n) -> const void* { return large1::variants_x(n); });
    add([](int& n) -> const void* { return large2::variants_x(n); });
    add([](int& n) -> const void* { return large4::variants_x(n); });
    add([](int& n) -> const void* { return large5::variants_x(n); });
    return v;
  }();
  return found;
}

extern "C" int sweep_count() { return static_cast<int>(all().size()); }
extern "C" const char* sweep_info(int v, int* out) {
  const Variant& i = all()[v];
  out[0] = i.bits, out[1] = i.rows, out[2] = i.tokens, out[3] = i.slots, out[4] = i.permuted, out[5] = i.diagnostic;
  return i.name;
}
extern "C" int sweep_launch(int v, int split, const void* x, const void* codes, const void* scale, void* y, int M, int N, int K, int G,
                            int multiprocessors, void* stream) {
  const Variant& i = all()[v];
  Launch l;
  l.multiprocessors = multiprocessors;
  l.early = true;
  l.stream = static_cast<cudaStream_t>(stream);
  l.args = {.scale = scale, .zero = nullptr, .bias = nullptr, .y = static_cast<__nv_bfloat16*>(y), .M = M, .N = N, .K = K, .G = G,
            .scale_stride = G, .group_size = G == 1 ? K : 128, .block_n = 1, .split = split,
            .scale_dtype = i.bits == 4 ? DType::bf16 : DType::f32, .bias_dtype = DType::bf16, .vector_scales = true,
            .chained = is_chained(l.stream)};
  const int row_bytes = i.bits == 4 ? K / 2 : K;
  const bool tokens = i.mid ? encode_quarters(&l.x_map, x, K, M, 2 * K, i.tokens)
                            : encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, x, K, M, 2 * K, 64, i.tokens, CU_TENSOR_MAP_SWIZZLE_128B);
  if (!tokens || !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, codes, row_bytes, N, row_bytes, stage_code_bytes(i.bits), i.rows,
                             i.bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B))
    return 999;
  return i.launch(l);
}
}  // namespace ao::large
