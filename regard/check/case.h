#pragma once

#include <map>
#include <string>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard::checking {

/// One call of a mechanism: a configuration, weights and inputs, all float64.
struct Case {
  std::shared_ptr<const Instance> instance;
  bool causal = false;              ///< the configuration says causal = true
  std::vector<at::Tensor> weights;  ///< in declared order
  at::Tensor x;
  std::map<std::string, at::Tensor> inputs;
  std::vector<int64_t> grid;  ///< empty: no grid
  int64_t prefix = 0;
  std::vector<std::string> outputs;  ///< wanted beside the main one
  std::string executor = "local";    ///< where keys and values are absorbed
  bool training = false;
  at::Tensor seed;  ///< of a training call; undefined: torch's generator

  /// What `attach_paths` found. A mechanism without attention has the one path "auto".
  std::vector<std::string> paths;
  std::map<std::string, std::string> refused_paths;  ///< path -> the reason given
  bool attends = false;                              ///< an attention op ran
  bool per_token = true;                             ///< the main output has a row for every token of x
  bool largest = false;                              ///< of its configuration's calls without inputs, the longest
  std::vector<std::string> executors;                ///< what the theorem `split` runs on: "split", "name:argument"

  /// Not written in Regard's terms (a Python module): checked to rounding, and NaN may pass through 0 * NaN.
  bool foreign() const;
  bool has(const std::string& input) const { return inputs.count(input) != 0; }
  int64_t batch() const { return x.size(0); }
  int64_t tokens() const { return x.size(1); }
  /// x, or the input of that name.
  const at::Tensor& tensor(const std::string& name) const { return name == "x" ? x : inputs.at(name); }
  Case with_tensor(const std::string& name, const at::Tensor& value) const {
    return name == "x" ? with_x(value) : with_input(name, value);
  }
  /// Which lengths pad which tensor in this call: {"lengths", "x"}, {"memory_lengths", "memory"}.
  std::vector<std::pair<std::string, std::string>> padded() const;
  /// The batch rows [begin, end) alone.
  Case rows(int64_t begin, int64_t end) const;
  Case with_x(const at::Tensor& replacement) const;
  Case with_input(const std::string& name, const at::Tensor& value) const;
  /// The first `count` tokens of x and what belongs to them; the grid, where there is one, becomes a line.
  Case first_tokens(int64_t count) const;
  /// Another x of this many tokens, random: a longer call without inputs beside x.
  Case stretched(int64_t tokens, uint64_t seed) const;
  /// "x (2, 5, 8), lengths (2), grid (1, 4), prefix 1"
  std::string text() const;
};

/// The examples of a mechanism as calls small enough to check in a second; what could not be called, and why.
struct Subject {
  const Info* info = nullptr;
  std::vector<Case> cases;            ///< smallest first
  std::vector<std::string> refusals;  ///< "config ...: reason"
  std::string unsupported;            ///< why the theorems say nothing about this mechanism; "" otherwise
  bool attends() const;
  bool has_input(const std::string& name) const;
};

/// Calls for every example configuration, the causal form of each where a field `causal` exists, over several batch
/// sizes and lengths, with and without each input that the mechanism takes. Equal for equal seeds.
Subject make_subject(const std::string& id, uint64_t seed, const std::vector<std::string>& executors = {"split"});

/// Float64 weights in declared order. Constant ones (zeros, ones) are disturbed, so that no term of the mechanism
/// vanishes and no gradient is zero by accident.
std::vector<at::Tensor> generic_weights(const Instance& instance, at::Generator generator);

/// Named random float64 normals: equal for equal seeds.
at::Generator generator_of(uint64_t seed);
at::Tensor normal(at::IntArrayRef shape, at::Generator generator);

}  // namespace regard::checking
