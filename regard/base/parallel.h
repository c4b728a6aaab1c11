#pragma once

#include <cstdint>
#include <functional>

namespace regard {

/// Runs body(task) for every task in [0, tasks), each exactly once, in any order, on any number of threads.
using ParallelFor = void (*)(int64_t tasks, const std::function<void(int64_t)>& body);

/// The threading seam: kernels call this. The default runs the tasks in order on the calling thread;
/// `ops` sets it to torch's pool when the library is loaded.
void parallel_for(int64_t tasks, const std::function<void(int64_t)>& body);

/// Replaces the implementation behind `parallel_for` and returns the one before.
ParallelFor set_parallel_for(ParallelFor implementation);

}  // namespace regard
