#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "regard/check/case.h"
#include "regard/check/difference.h"

namespace regard::checking {

/// A case in which a theorem does not hold.
struct Counterexample {
  std::string what;    ///< the claim that failed
  std::string config;  ///< canonical JSON
  std::string inputs;  ///< shapes of x and of the inputs beside it
  std::string path;
  int64_t size = 0;            ///< entries of x
  std::vector<int64_t> index;  ///< of the worst entry, when tensors were compared
  double error = 0, expected = 0, found = 0;
  std::optional<Case> example;  ///< the call that failed
  std::optional<Case> origin;   ///< the case that the theorem was given
};

/// What the cases of one theorem showed. A theorem states claims; this keeps the worst error and the smallest failure.
class Findings {
 public:
  explicit Findings(double tolerance) : tolerance_(tolerance) {}

  /// The case that the theorem is given next.
  void begin(const Case& origin) { ++cases_, origin_ = &origin, case_ = origin; }
  /// The call, made of that case, and the path that the claims to come are about.
  void at(const Case& example, const std::string& path);

  /// Claim: |expected - found| <= tolerance * scale (scale 0: the largest magnitude of `expected`).
  bool compare(const std::string& what, const at::Tensor& expected, const at::Tensor& found, double scale = 0);
  /// Claim: the error measured by the theorem itself is within the tolerance.
  bool compare(const std::string& what, double error, double expected, double found);
  /// Claim: a plain fact.
  bool claim(const std::string& what, bool holds);
  /// A reported fact, no claim; each fact is kept once, with the first detail seen.
  void note(const std::string& fact, const std::string& detail = "");
  /// The case cannot run, for this reason. A theorem of which no claim was made for that says "not applicable".
  void refuse(const std::string& reason);
  /// Only failures of this kind (see kind_of) count: for the search of a smaller counterexample.
  void look_for(const std::string& kind) { sought_ = kind; }
  bool failed() const { return counterexample_.has_value(); }
  double error() const { return error_; }
  bool exact() const { return exact_; }
  double tolerance() const { return tolerance_; }
  int64_t cases() const { return cases_; }
  int64_t claims() const { return claims_; }
  int64_t failures() const { return failures_; }
  std::vector<std::string> notes() const;
  const std::vector<std::string>& refusals() const { return refusals_; }
  const std::vector<std::string>& paths() const { return paths_; }
  /// How often each claim failed.
  const std::map<std::string, int64_t>& failed_claims() const { return failed_claims_; }
  /// Of the failures, the one whose case is smallest.
  const std::optional<Counterexample>& counterexample() const { return counterexample_; }

 private:
  bool record(const std::string& what, const Difference& difference, bool holds);

  double tolerance_;
  double error_ = 0;
  bool exact_ = true;
  int64_t cases_ = 0, claims_ = 0, failures_ = 0;
  const Case* origin_ = nullptr;
  std::optional<Case> case_;  // a copy: a theorem that raises takes its own case with it
  std::string path_, sought_;
  std::vector<std::string> refusals_;
  std::vector<std::pair<std::string, std::string>> notes_;
  std::vector<std::string> paths_;
  std::map<std::string, int64_t> failed_claims_;
  std::optional<Counterexample> counterexample_;
};

}  // namespace regard::checking
