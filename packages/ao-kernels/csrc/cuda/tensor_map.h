// Descriptions of matrices for the bulk tensor copy engine (compute capability 9.0).
#pragma once
#include <cuda.h>

#include <cstdint>

namespace ao {

// Whether the driver can describe them.
bool has_tensor_maps();

// A (rows, columns) matrix whose rows are `pitch` bytes apart, read in boxes. Base and pitch are multiples of 16 bytes. False where the
// driver refuses.
bool encode_map(CUtensorMap* map, CUtensorMapDataType type, const void* data, int64_t columns, int64_t rows, int64_t pitch,
                int box_columns, int box_rows, CUtensorMapSwizzle swizzle);

// bfloat16 rows of `columns` (a multiple of 32) in boxes of 128 columns by box_rows: four quarters of 32 columns, each of them rows of 64
// bytes that follow each other. The coordinates of a box: 0, row, column / 32.
bool encode_quarters(CUtensorMap* map, const void* data, int64_t columns, int64_t rows, int64_t pitch, int box_rows);

}  // namespace ao
