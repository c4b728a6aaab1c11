#include "regard/scale/traffic.h"

#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/scale/layout.h"

namespace regard::sharding {
namespace {

struct Table {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<Traffic>> by_executor;
};
Table& table() {
  static Table& instance = *new Table;
  return instance;
}

}  // namespace

Traffic& traffic_of(const std::string& executor) {
  const std::lock_guard lock(table().mutex);
  auto& entry = table().by_executor[executor];
  if (!entry) entry = std::make_unique<Traffic>();
  return *entry;
}

std::string traffic_json() {
  const std::lock_guard lock(table().mutex);
  auto out = nlohmann::json::object();
  for (const auto& [executor, traffic] : table().by_executor)
    out[executor] = {{"forward", traffic->forward.load()},
                     {"backward", traffic->backward.load()},
                     {"metadata", traffic->metadata.load()},
                     {"collective", traffic->collective.load()}};
  return out.dump();
}

void reset_traffic() {
  const std::lock_guard lock(table().mutex);
  for (const auto& [executor, traffic] : table().by_executor)
    traffic->forward = traffic->backward = traffic->metadata = traffic->collective = 0;
}

RingBytes ring_bytes(int64_t keys, int64_t ranks, const std::string& layout, int64_t rank, int64_t widths,
                     int64_t element_size) {
  constexpr int64_t kFloat = 4;
  const Layout how = layout_from_name(layout);
  const int64_t accumulator = element_size > kFloat ? element_size : kFloat;
  RingBytes out;
  if (ranks == 1) return out;
  for (int64_t hop = 0; hop < ranks; ++hop) {  // at hop t a rank sends the block that came from t ranks before
    const int64_t held = count_of_rank(keys, ranks, how, (rank + ranks - hop) % ranks);
    if (hop + 1 < ranks) out.forward += held * widths * element_size;
    out.backward += held * widths * accumulator;
  }
  out.backward += out.forward;
  return out;
}

}  // namespace regard::sharding
