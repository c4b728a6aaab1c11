#pragma once

#include <cstdint>
#include <functional>
#include <string>

/// Groups whose members are threads of this process: for tests, and for looking at a sharded run without starting
/// processes. A member is found by the name "threads/NAME/RANK". When one fails, the waits of all others throw.
namespace regard::sharding {

void open_thread_group(const std::string& name, int64_t size);
void close_thread_group(const std::string& name);
void poison_thread_group(const std::string& name, const std::string& reason);

/// Runs body(rank, name of the member) in `size` threads and returns when all have ended; throws the first failure.
void run_in_threads(int64_t size, const std::function<void(int64_t rank, const std::string& member)>& body);

}  // namespace regard::sharding
