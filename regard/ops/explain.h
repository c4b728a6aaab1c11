#pragma once

#include <string>

namespace regard {

/// A spec for people: its fields in order, and for every faster path that refuses it the field that stands in the way.
std::string explain(const std::string& spec_json);

}  // namespace regard
