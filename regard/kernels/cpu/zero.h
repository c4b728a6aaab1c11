#pragma once

#include <algorithm>

#include "regard/base/parallel.h"

namespace regard::kernels {

/// data[0, count) = 0 by all threads; nothing for null.
template <class T>
void zero(T* data, int64_t count) {
  constexpr int64_t kPart = 1 << 16;  // elements a task: tens of microseconds
  if (data == nullptr) return;
  parallel_for((count + kPart - 1) / kPart,
               [=](int64_t part) { std::fill(data + part * kPart, data + std::min(count, (part + 1) * kPart), T(0)); });
}

}  // namespace regard::kernels
