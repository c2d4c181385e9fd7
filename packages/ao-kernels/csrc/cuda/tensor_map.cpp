#include "cuda/tensor_map.h"

#include <cuda_runtime_api.h>

namespace ao {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking the driver: the module must import where there is none.
Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function)
                                                                         : nullptr;
  }();
  return found;
}

}  // namespace

bool has_tensor_maps() { return encoder() != nullptr; }

bool encode_map(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t columns, int64_t rows, int64_t pitch,
                int box_columns, int box_rows, CUtensorMapSwizzle swizzle) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitches[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  return encoder()(map, type, 2, const_cast<void*>(data), sizes, pitches, box, steps,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool encode_quarters(CUtensorMap* map, const void* data, int64_t columns, int64_t rows, int64_t pitch, int box_rows) {
  const cuuint64_t sizes[3] = {32, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(columns / 32)};
  const cuuint64_t pitches[2] = {static_cast<cuuint64_t>(pitch), 64};
  const cuuint32_t box[3] = {32, static_cast<cuuint32_t>(box_rows), 4};
  const cuuint32_t steps[3] = {1, 1, 1};
  return encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, pitches, box, steps,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace ao
