#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace regard::kernels {

/// A thread's scratch memory: taken piece by piece, given back all at once, kept for the next task.
class Arena {
 public:
  /// Uninitialized, aligned to a cache line; valid until `reset`.
  template <class D>
  D* take(int64_t count) {
    return static_cast<D*>(bytes(static_cast<size_t>(count > 0 ? count : 1) * sizeof(D)));
  }
  void reset();

 private:
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t size = 0, used = 0;
  };
  void* bytes(size_t size);
  std::vector<Block> blocks_;
};

/// The calling thread's, reset. One task at a time may use it.
Arena& fresh_arena();

}  // namespace regard::kernels
