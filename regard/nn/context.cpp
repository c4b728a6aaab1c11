#include "regard/nn/context.h"

#include <algorithm>

namespace regard {
namespace {

/// FNV-1a, so that a stream's number depends on its name alone, on every machine.
int64_t number_of(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char letter : name) hash = (hash ^ letter) * 0x100000001b3u;
  return static_cast<int64_t>(hash >> 2);
}

}  // namespace

at::Tensor Context::input(const std::string& name) const {
  const auto it = inputs.find(name);
  return it == inputs.end() ? at::Tensor() : it->second;
}

bool Context::wants(const std::string& name) const {
  return std::find(wanted.begin(), wanted.end(), name) != wanted.end();
}

void Context::output(const std::string& name, at::Tensor value) { outputs[name] = std::move(value); }

at::Tensor Context::stream(const std::string& name) {
  if (!seed.defined())
    seed = host ? host->stream(name) : at::randint(int64_t{1} << 62, {}, at::TensorOptions().dtype(at::kLong));
  // A second call for a name is a second stream: what is drawn for one layer is not drawn again for another.
  return seed.bitwise_xor(number_of(name + "#" + std::to_string(streams++)));
}

}  // namespace regard
