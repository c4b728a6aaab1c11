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
  std::string name;       ///< ours
  bool inverted = false;  ///< a boolean input of the opposite meaning
  bool added = false;     ///< an output whose sum the case adds to its loss

  bool placed() const { return kind != Kind::ignored && kind != Kind::unmatched; }
};

/// One call of a case: which of our tensors each name of the file is.
struct GoldenStep {
  std::shared_ptr<const Instance> instance;
  std::vector<int64_t> grid;  ///< from the configuration, if it says one
  int64_t prefix = 0;
  /// Inputs by the whole name: "in.x", or "out.NAME" of an earlier step. Weights and outputs by NAME.
  std::map<std::string, Target> inputs, weights, outputs;
};

/// A file read for one mechanism: the calls that it describes, most often one.
struct GoldenCase {
  std::vector<GoldenStep> steps;
  std::vector<std::string> unmatched;  ///< names of the file that no step has a place for
  std::vector<std::string> missing;    ///< our weights that the file does not bring
};
/// `form` is the mapping that fits the file: see form_of.
GoldenCase map_golden(const Mechanism& mechanism, const Golden& form, const GoldenFile& file);

/// The first of golden.forms for this folder with a tensor of the file that `when` matches, else `golden` itself; null
/// when `golden` is for another folder (`own_folder` false).
const Golden* form_of(const Golden& golden, const GoldenFile& file, const std::string& folder, bool own_folder);

/// The configuration in our keys (JSON), from the official code's.
std::string map_config(const Mechanism& mechanism, const Golden& golden, const std::string& official,
                       std::vector<int64_t>& grid, int64_t& prefix, int64_t width = 0);

/// The right side of the exact entry, else of the first pattern that matches; null when there is none.
const std::string* entry_of(const std::vector<std::pair<std::string, std::string>>& pairs, const std::string& name);

/// '*' stands for any text, '#' for a number (digits).
bool matches(const std::string& pattern, const std::string& name);

/// The bound of each tensor: `least`, or its own where that is larger.
struct Bounds {
  double least = 0;
  std::map<std::string, double> own;  ///< by the name in the file: "out.y", "grad.param.wq.weight"

  double of(const std::string& name) const;
};
/// What the metadata `tolerance` says, and at least `least`: "1e-6" for everything, "1e-7 for aux_loss (float32 there)"
/// for the tensors named.
Bounds tolerance_of(const GoldenFile& file, double least);

}  // namespace regard::checking
