// Host side of weight_only_large.cuh.
#include <climits>

#include "cuda/tensor_map.h"
#include "cuda/weight_only_large_launch.cuh"

namespace ao::large {

extern template cudaError_t launch_groups<4, 0>(const Launch&);
extern template cudaError_t launch_groups<4, 1>(const Launch&);
extern template cudaError_t launch_groups<4, 2>(const Launch&);
extern template cudaError_t launch_groups<4, 4>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 0>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 1>(const Launch&);
extern template cudaError_t launch_groups<kInt8, 4>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 0>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 1>(const Launch&);
extern template cudaError_t launch_groups<kE4m3, 4>(const Launch&);
extern template cudaError_t launch_groups<kE5m2, 0>(const Launch&);
extern template cudaError_t launch_groups<kE5m2, 1>(const Launch&);

// Rules fitted to an H200: 4096 x 4096, 14336 x 4096, 4096 x 14336 and 6144 x 4096 with 16 to 4096 tokens.
Plan make_plan(const LinearArgs& a, const Device& device) {
  const int64_t M = a.M, blocks = (a.K + kStageK - 1) / kStageK;
  Plan plan{.consumers = 2, .tokens = 256, .ctas = 1, .split = 1};
  if (M <= 32) plan = {1, 32, 3, 1};
  else if (M <= 64) plan = {2, 64, 2, 1};
  else if (M <= 128) plan = {4, 128, 1, 1};
  const int64_t rows = 64 * plan.consumers, tiles = (a.N + rows - 1) / rows * ((M + plan.tokens - 1) / plan.tokens);
  const int64_t at_once = device.multiprocessors * plan.ctas;
  while (plan.split < 8 && tiles * plan.split * 2 <= at_once && blocks >= 8 * plan.split) plan.split *= 2;
  return plan;
}

const char* device_refusal(const Device& device) {
#ifndef AO_CUDA_SM90A
  return "ao_kernels._cuda was built without architecture 90a, which the kernel of more than 16 tokens needs";
#endif
  if (device.capability != 90) return "the kernel of more than 16 tokens needs compute capability 9.0";
  return has_tensor_maps() ? "" : "the driver cannot describe tensors to the copy engine";
}

bool takes(const LinearArgs& a, const Device& device) {
  const bool one_group = a.group_size >= a.K;
  if (a.bits > 0 && a.bits != 4) return false;
  if (*device_refusal(device) || a.x_dtype != DType::bf16 || a.M >= library_tokens(a.bits) || a.K % 32) return false;
  if (one_group ? a.zero != nullptr : a.scale_dtype != (a.bits < 0 ? DType::f32 : DType::bf16)) return false;
  if (!one_group && a.group_size % kStageK && (a.bits == kE5m2 || (a.group_size != 64 && a.group_size != 32)))
    return false;
  // Coordinates of the copy engine are ints, and its rows begin at multiples of 16 bytes.
  return a.N <= INT_MAX - 256 && a.K <= INT_MAX / 16 && a.x_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(a.codes) % 16 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
}

cudaError_t launch(const LinearArgs& a, const Device& device, cudaStream_t stream) {
  Launch l;
  l.plan = make_plan(a, device);
  l.multiprocessors = device.multiprocessors;
  l.early = device.early_launch;
  l.stream = stream;
  const bool vectors = a.scale_stride % 8 == 0 && reinterpret_cast<uintptr_t>(a.scale) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(a.zero) % 16 == 0;
  l.args = {.scale = a.scale, .zero = a.zero, .bias = a.bias, .y = static_cast<__nv_bfloat16*>(a.y),
            .M = static_cast<int>(a.M), .N = static_cast<int>(a.N), .K = static_cast<int>(a.K), .G = static_cast<int>(a.G),
            .scale_stride = static_cast<int>(a.scale_stride), .group_size = static_cast<int>(a.group_size),
            .block_n = static_cast<int>(a.block_n), .split = l.plan.split,
            .scale_dtype = a.scale_dtype, .bias_dtype = a.bias_dtype, .vector_scales = vectors, .chained = l.early && is_chained(stream)};
  if (!encode_map(&l.x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, a.x, a.K, a.M, 2 * a.x_stride, 64, l.plan.tokens,
              CU_TENSOR_MAP_SWIZZLE_128B) ||
      !encode_map(&l.codes_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, a.codes, a.row_bytes, a.N, a.row_bytes,
              stage_code_bytes(a.bits), 64 * l.plan.consumers, a.bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorInvalidValue;
  const bool row = a.G == 1, stages = a.group_size % kStageK == 0;  // what a group spans
  switch (a.bits) {
    case kInt8: return row ? launch_groups<kInt8, 0>(l) : stages ? launch_groups<kInt8, 1>(l) : launch_groups<kInt8, 4>(l);
    case kE4m3: return row ? launch_groups<kE4m3, 0>(l) : stages ? launch_groups<kE4m3, 1>(l) : launch_groups<kE4m3, 4>(l);
    case kE5m2: return row ? launch_groups<kE5m2, 0>(l) : launch_groups<kE5m2, 1>(l);
    default: break;
  }
  if (row) return launch_groups<4, 0>(l);
  if (stages) return launch_groups<4, 1>(l);
  return a.group_size == 64 ? launch_groups<4, 2>(l) : launch_groups<4, 4>(l);
}

}  // namespace ao::large
