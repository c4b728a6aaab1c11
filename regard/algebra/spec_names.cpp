#include <array>

#include "regard/algebra/spec.h"
#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {
namespace {

constexpr std::array kKinds = {"softmax", "signed_softmax", "sum", "sigmoid", "relu", "identity", "z_score"};
constexpr std::array kDivisors = {"one", "keys", "kept"};
constexpr std::array kEpsilonPlaces = {"inside", "outside", "inside_count"};

template <size_t count>
size_t find(const std::array<const char*, count>& names, const std::string& name, const char* function) {
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return i;
  }
  const std::vector<std::string> known(names.begin(), names.end());
  fail(function, "one of " + quoted_list(known), "'" + name + "'" + suggestion(name, known));
}

}  // namespace

const char* name_of(Normalizer::Kind kind) { return kKinds[static_cast<size_t>(kind)]; }
const char* name_of(Normalizer::Divisor divisor) { return kDivisors[static_cast<size_t>(divisor)]; }
const char* name_of(Normalizer::EpsilonPlace place) { return kEpsilonPlaces[static_cast<size_t>(place)]; }

Normalizer::Kind normalizer_from_name(const std::string& name) {
  return static_cast<Normalizer::Kind>(find(kKinds, name, "normalizer"));
}

Normalizer::Divisor divisor_from_name(const std::string& name) {
  return static_cast<Normalizer::Divisor>(find(kDivisors, name, "divisor"));
}

Normalizer::EpsilonPlace epsilon_place_from_name(const std::string& name) {
  return static_cast<Normalizer::EpsilonPlace>(find(kEpsilonPlaces, name, "epsilon_place"));
}

}  // namespace regard
