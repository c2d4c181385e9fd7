#include "scratch.h"

#include <new>

namespace ao {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;

  void release() {
    ::operator delete(data, std::align_val_t{64});
    data = nullptr;
    bytes = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer t_buffers[kScratchSlots];

}  // namespace

void* scratch(int slot, size_t bytes) {
  Buffer& buffer = t_buffers[slot];
  if (buffer.bytes < bytes || (buffer.bytes > kScratchKept && bytes <= kScratchKept)) {
    buffer.release();
    buffer.data = ::operator new(bytes, std::align_val_t{64});
    buffer.bytes = bytes;
  }
  return buffer.data;
}

}  // namespace ao
