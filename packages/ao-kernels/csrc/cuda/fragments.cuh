// Instructions that CUDA C++ has no spelling for.
#pragma once
#include <cstdint>

#include "cuda/codes.cuh"

namespace ao {

// d += A (16 x 16) * B (16 x 8), one warp. Lane 4g + t holds of A the columns (2t, 2t+1) and (2t+8, 2t+9) of rows g
// (a0, a2) and g + 8 (a1, a3), of B the same k in column g (b0, b1), of d rows g (0, 1) and g + 8 (2, 3), columns
// 2t and 2t + 1. Which k a column of A stands for is free, as long as B agrees.
template <class Half>
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (is_bf16<Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// The same in bf16, d = a * b + c.
__device__ __forceinline__ void multiply_add_to(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Copies BYTES (4, 8, 16) bytes from global to shared memory, or writes zeros if not `valid`, and does not wait: a copy
// belongs to the next group that its thread commits. 16 bytes leave no trace in L1. LINE: others ask for the rest of the
// 128 bytes around them at the same time, so L2 should fetch these at once.
template <int BYTES, bool LINE = false>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? BYTES : 0;
  if constexpr (BYTES == 16 && LINE) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  } else if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 ::"r"(to), "l"(global), "n"(BYTES), "r"(bytes) : "memory");
  }
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most PENDING groups of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Memory of which other lanes or later loads want the rest of the sector. Volatile, so that the load stays where
// it is written, ahead of what waits for it.
template <class T>
__device__ __forceinline__ uint32_t load_shared_sector(const T* p) {
  if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
  } else if constexpr (sizeof(T) == 2) {
    uint16_t v;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
  } else {
    uint32_t v;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
  }
}

// Waits for all grids before this one in the stream, where it was launched ahead of their end.
__device__ __forceinline__ void wait_for_earlier_grids() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_later_grids_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for memory to be brought into L2, and changes nothing else: there, a later write still reaches it.
__device__ __forceinline__ void prefetch_sector(const void* data) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(data));
}

// The same for `bytes` from `data` on, for which LANES lanes come together; a sector has 32 bytes.
template <int LANES>
__device__ __forceinline__ void prefetch_row(const uint8_t* data, int lane, int bytes) {
  for (int i = 32 * (lane % LANES); i < bytes; i += 32 * LANES) prefetch_sector(data + i);
}

// All threads of all blocks of the cluster, with their shared memory.
__device__ __forceinline__ void synchronize_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// `mine` is in this block's shared memory; reads the float at the same place in that of block `rank`.
__device__ __forceinline__ float read_of_cluster(const float* mine, uint32_t rank) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(there) : "memory");
#endif
  return v;
}

}  // namespace ao
