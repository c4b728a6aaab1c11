#pragma once

#include <cstdint>
#include <string>

/// What this machine can do at most, measured in a fraction of a second: the two slopes of a roofline.
namespace regard::kernels {

struct Machine {
  std::string isa;                            ///< isa()
  int threads = 1, cores = 1;
  double fma_gflops = 0, fma_gflops_one = 0;  ///< float32 multiply-adds in registers: all threads, one
  double amx_gflops = 0, amx_gflops_one = 0;  ///< bfloat16 products of AMX tiles; 0 without AMX
  double read_gbps = 0, read_gbps_one = 0;    ///< sum of a buffer beyond the last-level cache: all threads, one
};

/// Measures now, on `threads` tasks of parallel_for. Takes the best of several runs: a busy neighbor only slows.
Machine measure_machine(int threads);

/// The loops of one instruction set.
struct MachineLoops {
  double (*fma)(int64_t rounds);                       ///< floating-point operations done
  float (*sum)(const float* data, int64_t count);      ///< of 8 vector accumulators; count a multiple of 128
};
const MachineLoops& machine_loops();

/// The same for AMX, or null where the processor has none or may not use it.
double (*machine_amx_loop())(int64_t rounds);

}  // namespace regard::kernels
