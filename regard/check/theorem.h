#pragma once

#include <memory>
#include <string>
#include <vector>

#include "regard/check/case.h"
#include "regard/check/findings.h"

namespace regard::checking {

/// One property that every mechanism has, or says why not. To add one: a source in theorems/ that defines it and a line
/// in theorems.cpp.
class Theorem {
 public:
  virtual ~Theorem() = default;
  virtual const char* name() const = 0;
  virtual const char* statement() const = 0;  ///< one line, for people
  virtual double tolerance() const = 0;       ///< relative to the largest magnitude of the tensor compared
  /// "" when the theorem says something about this mechanism, else why it does not.
  virtual std::string excuse(const Subject& subject) const = 0;
  /// Cases worth running: those that bring what the theorem is about.
  virtual bool wants(const Case& example) const = 0;
  /// Makes claims about one case. Exceptions count as failures.
  virtual void run(const Case& example, Findings& findings) const = 0;
};

std::unique_ptr<Theorem> paths_agree();
std::unique_ptr<Theorem> causality();
std::unique_ptr<Theorem> gradients_theorem();
std::unique_ptr<Theorem> empty_rows();
std::unique_ptr<Theorem> padding();
std::unique_ptr<Theorem> batch_independence();
std::unique_ptr<Theorem> cache();
std::unique_ptr<Theorem> split();
std::unique_ptr<Theorem> shard();
std::unique_ptr<Theorem> packed();
std::unique_ptr<Theorem> threads();
std::unique_ptr<Theorem> dtypes();
std::unique_ptr<Theorem> checkpointing();
std::unique_ptr<Theorem> maps();
std::unique_ptr<Theorem> permutation();

/// All of them, in the order of the report.
const std::vector<std::unique_ptr<Theorem>>& theorems();

}  // namespace regard::checking
