#include "regard/ops/paths.h"

#include <torch/library.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

constexpr std::array<const char*, 4> kNames = {"auto", "fused", "stripe", "composite"};

struct Counters {
  std::mutex mutex;
  std::map<std::string, std::array<int64_t, 4>, std::less<>> counts;
};

Counters& counters() {
  static Counters instance;
  return instance;
}

std::atomic<bool> strict_mode{false};

}  // namespace

const char* name_of(Path path) { return kNames[static_cast<size_t>(path)]; }

Path path_from_name(std::string_view function, std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<Path>(i);
  const std::string found(name);
  fail(std::string(function), "path to be one of " + quoted_list({kNames.begin(), kNames.end()}),
       "'" + found + "'" + suggestion(found, {kNames.begin(), kNames.end()}));
}

void count_path(const char* op, Path path) {
  const std::lock_guard<std::mutex> lock(counters().mutex);
  auto& counts = counters().counts;
  auto found = counts.find(std::string_view(op));  // a string is made the first time alone
  if (found == counts.end()) found = counts.try_emplace(op).first;
  found->second[static_cast<size_t>(path)] += 1;
}

std::string path_counts() {
  const std::lock_guard<std::mutex> lock(counters().mutex);
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [op, counts] : counters().counts)
    for (const Path path : {Path::fused, Path::stripe, Path::composite})
      out[op][name_of(path)] = counts[static_cast<size_t>(path)];
  return out.dump();
}

void reset_path_counts() {
  const std::lock_guard<std::mutex> lock(counters().mutex);
  counters().counts.clear();
}

bool set_strict(bool value) { return strict_mode.exchange(value); }
bool strict() { return strict_mode; }

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("path_counts() -> str", &path_counts);
  m.def("reset_path_counts() -> ()", &reset_path_counts);
  m.def("set_strict(bool strict) -> bool", &set_strict);
}

}  // namespace regard
