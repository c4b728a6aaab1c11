#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "regard/algebra/spec.h"

namespace regard::ops {

/// What every call asks of its spec, read off the expressions once and kept beside the interned spec.
struct SpecFacts {
  /// A distinct dot leaf of the spec's expressions.
  struct Dot {
    std::string name;    ///< "" for the call's own q and k
    size_t operand = 0;  ///< position in `operands`; not read for the call's own
    int64_t begin, end;  ///< features; end -1: all
    int64_t only_head;   ///< -1: every head
  };
  /// A distinct read of a captured tensor.
  struct Read {
    size_t capture;  ///< position in `captures`
    size_t indices;  ///< how many
    Type type;
  };

  std::string text;                             ///< the JSON of the spec, as calls bring it
  std::shared_ptr<const AttentionSpec> spec;    ///< resolved and interned
  std::vector<std::string> captures, operands;  ///< sorted names: spec->captures(), spec->operands()
  std::vector<Dot> dots;
  std::vector<Read> reads;
  int64_t pair_channels = 0;
};

/// The facts of a spec's JSON: parsed, checked and analyzed at the first call, then found again without a lock.
std::shared_ptr<const SpecFacts> facts_of(std::string_view json);

/// How many specs were analyzed since the start: a second call with the same spec adds none.
int64_t specs_analyzed();

}  // namespace regard::ops
