#include "regard/ops/machine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/base/file.h"
#include "regard/kernels/attention.h"
#include "regard/ops/boundary.h"

namespace regard::ops {
namespace {

using kernels::Machine;
using nlohmann::json;

std::filesystem::path cache_file(int threads) {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  const std::filesystem::path folder = cache && *cache ? std::filesystem::path(cache)
                                       : home && *home ? std::filesystem::path(home) / ".cache"
                                                       : std::filesystem::path(".cache");
  char host[256] = "host";
  gethostname(host, sizeof host - 1);
  return folder / "regard" / "machine" /
         (std::string(host) + "-" + kernels::isa() + "-" + std::to_string(threads) + ".json");
}

/// What was kept, or nothing that can be used (threads 0).
Machine kept(const std::filesystem::path& file) {
  Machine m;
  m.threads = 0;
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return m;
  try {
    const json found = json::parse(read_file(file.string(), "machine"));
    m.isa = found.at("isa");
    m.cores = found.at("cores");
    m.fma_gflops = found.at("fma_gflops");
    m.fma_gflops_one = found.at("fma_gflops_one");
    m.amx_gflops = found.at("amx_gflops");
    m.amx_gflops_one = found.at("amx_gflops_one");
    m.read_gbps = found.at("read_gbps");
    m.read_gbps_one = found.at("read_gbps_one");
    if (m.fma_gflops > 0 && m.read_gbps > 0) m.threads = found.at("threads");
  } catch (const std::exception&) {  // half a file, or one of another version: measured again
  }
  return m;
}

/// Of two measurements the higher figures: a busy neighbor only slows.
Machine better(Machine m, const Machine& other) {
  for (const auto figure : {&Machine::fma_gflops, &Machine::fma_gflops_one, &Machine::amx_gflops,
                            &Machine::amx_gflops_one, &Machine::read_gbps, &Machine::read_gbps_one})
    m.*figure = std::max(m.*figure, other.*figure);
  return m;
}

/// A cache folder that cannot be written costs the next process a measurement and nothing else.
void keep(const std::filesystem::path& file, const Machine& m) {
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  try {
    if (!error) write_file_atomically(file.string(), to_json(m) + "\n", "machine");
  } catch (const std::exception&) {
  }
}

std::string machine_op(bool fresh) { return to_json(machine(fresh)); }

}  // namespace

std::string to_json(const Machine& m) {
  return json{{"isa", m.isa},
              {"threads", m.threads},
              {"cores", m.cores},
              {"fma_gflops", m.fma_gflops},
              {"fma_gflops_one", m.fma_gflops_one},
              {"amx_gflops", m.amx_gflops},
              {"amx_gflops_one", m.amx_gflops_one},
              {"read_gbps", m.read_gbps},
              {"read_gbps_one", m.read_gbps_one}}
      .dump(2);
}

Machine machine(bool fresh) {
  static std::mutex mutex;
  static std::map<std::string, Machine> known;
  const int threads = at::get_num_threads();
  const auto file = cache_file(threads);
  const std::lock_guard<std::mutex> lock(mutex);
  Machine& m = known.try_emplace(file.string(), Machine{.isa = "", .threads = 0}).first->second;
  if (m.threads != threads) m = kept(file);
  if (fresh || m.threads != threads) {
    const Machine before = m;
    m = better(kernels::measure_machine(threads), before);
    keep(file, m);
  }
  return m;
}

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("machine(bool fresh=False) -> str", guarded<&machine_op>); }

}  // namespace regard::ops
