#pragma once

#include <map>
#include <string>
#include <vector>

#include "regard/check/case.h"

namespace regard::checking {

/// A file as it is: tensors by name, and the metadata.
struct GoldenFile {
  std::string path;
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;

  std::string text(const std::string& key) const;  ///< of the metadata, "" when absent
  /// The tensors "PREFIXNAME" by NAME.
  std::map<std::string, at::Tensor> under(const std::string& prefix) const;
};
GoldenFile read_golden_file(const std::string& path);

/// What a name of the file became.
struct Target {
  enum class Kind : uint8_t { x, input, weight, main, output, ignored, unmatched };
  Kind kind = Kind::unmatched;
  std::string name;  ///< ours
};

/// A file read for one mechanism: which of our tensors each of its names is.
struct GoldenCase {
  std::shared_ptr<const Instance> instance;
  std::vector<int64_t> grid;  ///< from the configuration, if it says one
  int64_t prefix = 0;
  std::map<std::string, Target> inputs, weights, outputs;
  std::vector<std::string> unmatched;  ///< names of the file that we have no place for
  std::vector<std::string> missing;    ///< our weights that the file does not bring
};
GoldenCase map_golden(const Mechanism& mechanism, const GoldenFile& file);

/// The configuration in our keys (JSON), from the official code's.
std::string map_config(const Mechanism& mechanism, const std::string& official, std::vector<int64_t>& grid,
                       int64_t& prefix);

/// '*' stands for any text, '#' for a number (digits).
bool matches(const std::string& pattern, const std::string& name);

}  // namespace regard::checking
