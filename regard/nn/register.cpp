// Instances of a mechanism, each configuration made once.

#include <map>
#include <mutex>

#include "regard/nn/mechanism.h"

namespace regard::detail {

struct Cache::State {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const Instance>> instances;
};

Cache::Cache() : state_(std::make_unique<State>()) {}
Cache::~Cache() = default;

std::shared_ptr<const Instance> Cache::get(const std::string& key,
                                           const std::function<std::shared_ptr<const Instance>()>& make) {
  {
    const std::lock_guard lock(state_->mutex);
    const auto it = state_->instances.find(key);
    if (it != state_->instances.end()) return it->second;
  }
  // Made outside the lock: a host's instance configures its mixers.
  auto instance = make();
  const std::lock_guard lock(state_->mutex);
  return state_->instances.emplace(key, std::move(instance)).first->second;
}

}  // namespace regard::detail
