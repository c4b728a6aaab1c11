#pragma once

#include <string>

#include "regard/kernels/cpu/machine.h"

namespace regard::ops {

/// The peaks of this machine with torch's number of threads. Measured once (a second or two) and kept in the user's
/// cache folder, a file a host, instruction set and number of threads; `fresh` measures again and keeps the
/// higher figures.
kernels::Machine machine(bool fresh = false);

/// {"isa", "threads", "cores", "fma_gflops", "fma_gflops_one", "amx_gflops", "amx_gflops_one", "read_gbps",
/// "read_gbps_one"}, as the cache holds it.
std::string to_json(const kernels::Machine& machine);

}  // namespace regard::ops
