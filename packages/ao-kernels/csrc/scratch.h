// Thread-local scratch memory, 64-byte aligned, kept between calls up to a bound.
#pragma once
#include <cstddef>

namespace ao {

// `bytes` of uninitialised memory of the calling thread, valid until its next scratch(slot, ...) call with the
// same slot. Slots: 0 to 2 for the caller of a kernel (converted activations), 3 to 5 for its workers.
// Above 16 MiB the memory goes back to the system at the next call that needs less.
void* scratch(int slot, size_t bytes);

constexpr int kScratchSlots = 6;
constexpr size_t kScratchKept = size_t{16} << 20;

}  // namespace ao
