#include "regard/kernels/cpu/arena.h"

#include <algorithm>

namespace regard::kernels {
namespace {

constexpr size_t kLine = 64;                // bytes of a cache line and of the widest vector
constexpr size_t kFirstBlock = 512 * 1024;  // the tiles of an ordinary call with D = 64

std::byte* aligned(std::byte* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return pointer + (kLine - address % kLine) % kLine;
}

}  // namespace

void* Arena::bytes(size_t size) {
  size = (size + kLine - 1) / kLine * kLine;
  if (blocks_.empty() || blocks_.back().used + size > blocks_.back().size) {
    const size_t grown = std::max({size, kFirstBlock, blocks_.empty() ? 0 : 2 * blocks_.back().size});
    blocks_.push_back({std::unique_ptr<std::byte[]>(new std::byte[grown + kLine]), grown, 0});
  }
  Block& block = blocks_.back();
  std::byte* start = aligned(block.memory.get()) + block.used;
  block.used += size;
  return start;
}

void Arena::reset() {
  // Only the last block, the largest, is kept: the next task of this size fits it or its successor.
  if (blocks_.size() > 1) blocks_.erase(blocks_.begin(), blocks_.end() - 1);
  if (!blocks_.empty()) blocks_.back().used = 0;
}

Arena& fresh_arena() {
  thread_local Arena arena;
  arena.reset();
  return arena;
}

}  // namespace regard::kernels
