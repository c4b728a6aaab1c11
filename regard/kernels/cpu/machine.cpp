#include "regard/kernels/cpu/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

#include "regard/base/parallel.h"
#include "regard/kernels/attention.h"

namespace regard::kernels {
namespace {

constexpr int kRuns = 9;
constexpr double kSeconds = 0.004;  // a run: long beside the start of a parallel loop, short beside a time slice

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// GFLOP/s of `loop` on `threads` tasks at once.
double flops_of(double (*loop)(int64_t), int threads) {
  int64_t rounds = 1000;
  for (double seconds = 0; seconds < kSeconds; rounds *= 2) {
    const double start = now();
    loop(rounds);
    seconds = now() - start;
  }
  const double operations = loop(1) * static_cast<double>(rounds) * threads;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const double start = now();
    if (threads == 1) {
      loop(rounds);
    } else {
      parallel_for(threads, [&](int64_t) { loop(rounds); });
    }
    best = std::max(best, operations / (now() - start) * 1e-9);
  }
  return best;
}

/// Bytes of the largest cache of core 0; 32 MiB where the system does not say.
int64_t last_level_cache() {
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    int64_t size = 0;
    char unit = ' ';
    if (!(file >> size)) continue;
    file >> unit;
    largest = std::max(largest, size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0));
  }
  return largest > 0 ? largest : int64_t{32} << 20;
}

/// A sum over a buffer twice the last-level cache, at least 128 MiB and at most 1 GiB, on all threads and on one (over
/// a quarter of it).
void read_bandwidth(Machine& machine) {
  constexpr int64_t kChunk = int64_t{4} << 20;  // bytes a task
  const int64_t bytes = std::clamp(2 * last_level_cache(), int64_t{128} << 20, int64_t{1} << 30) / kChunk * kChunk;
  const int64_t chunks = bytes / kChunk, floats = kChunk / static_cast<int64_t>(sizeof(float));
  const std::unique_ptr<float, void (*)(void*)> data(
      static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(bytes))), std::free);
  if (data == nullptr) return;
  parallel_for(chunks, [&](int64_t c) { std::fill_n(data.get() + c * floats, floats, 1.0f); });
  std::atomic<float> kept = 0;  // of all threads; the sums must not be left out
  const auto time = [&](int64_t count, bool all) {
    double best = 0;
    for (int run = 0; run < 3; ++run) {
      const double start = now();
      const auto read = [&](int64_t c) {
        kept.store(machine_loops().sum(data.get() + c * floats, floats), std::memory_order_relaxed);
      };
      if (all) {
        parallel_for(count, read);
      } else {
        for (int64_t c = 0; c < count; ++c) read(run * count + c);  // another part each run: no cache holds it
      }
      best = std::max(best, static_cast<double>(count * kChunk) / (now() - start) * 1e-9);
    }
    return best;
  };
  machine.read_gbps = time(chunks, true);
  machine.read_gbps_one = time(chunks / 4, false);
}

}  // namespace

Machine measure_machine(int threads) {
  Machine machine;
  machine.isa = isa();
  machine.threads = threads;
  machine.cores = static_cast<int>(std::thread::hardware_concurrency());
  machine.fma_gflops_one = flops_of(machine_loops().fma, 1);
  machine.fma_gflops = threads > 1 ? flops_of(machine_loops().fma, threads) : machine.fma_gflops_one;
  if (machine.isa == "amx" && machine_amx_loop() != nullptr) {
    machine.amx_gflops_one = flops_of(machine_amx_loop(), 1);
    machine.amx_gflops = threads > 1 ? flops_of(machine_amx_loop(), threads) : machine.amx_gflops_one;
  }
  read_bandwidth(machine);
  return machine;
}

}  // namespace regard::kernels
