#include "regard/check/findings.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/check/shrink.h"

namespace regard::checking {

namespace {

void keep_once(std::vector<std::string>& list, const std::string& text) {
  if (std::find(list.begin(), list.end(), text) == list.end()) list.push_back(text);
}

bool raised(const std::string& claim) { return claim.rfind("the call runs; raised", 0) == 0; }

}  // namespace

void Findings::at(const Case& example, const std::string& path) {
  case_ = example;
  path_ = path;
  if (!path.empty()) keep_once(paths_, path);
}

void Findings::note(const std::string& fact, const std::string& detail) {
  const bool known = std::any_of(notes_.begin(), notes_.end(), [&](const auto& note) { return note.first == fact; });
  if (!known) notes_.emplace_back(fact, detail);
}

void Findings::refuse(const std::string& reason) { keep_once(refusals_, reason); }

std::vector<std::string> Findings::notes() const {
  std::vector<std::string> lines;
  for (const auto& [fact, detail] : notes_) lines.push_back(detail.empty() ? fact : fact + ": " + detail);
  return lines;
}

bool Findings::record(const std::string& what, const Difference& difference, bool holds) {
  ++claims_;
  if (holds) return true;
  if (!sought_.empty() && kind_of(what) != sought_) return false;
  ++failures_;
  ++failed_claims_[what];
  const int64_t size = case_ ? case_->x.numel() : 0;
  if (counterexample_) {
    // What differs says more than that something was raised.
    const bool was_raised = raised(counterexample_->what), is_raised = raised(what);
    if (was_raised == is_raised ? counterexample_->size <= size : is_raised) return false;
  }
  counterexample_ = Counterexample{what,
                                   case_ ? case_->instance->config() : "",
                                   case_ ? case_->text() : "",
                                   path_,
                                   size,
                                   difference.index,
                                   difference.error,
                                   difference.expected,
                                   difference.found,
                                   case_,
                                   origin_ ? std::optional<Case>(*origin_) : std::nullopt};
  return false;
}

bool Findings::compare(const std::string& what, const at::Tensor& expected, const at::Tensor& found, double scale) {
  if (expected.sizes() != found.sizes()) {
    return record(what + ": shape " + shape_text(found.sizes()) + " instead of " + shape_text(expected.sizes()), {},
                  false);
  }
  const Difference worst = difference(expected, found, scale);
  error_ = std::max(error_, worst.error);
  exact_ = exact_ && worst.exact;
  return record(what, worst, worst.error <= tolerance_);
}

bool Findings::compare(const std::string& what, double error, double expected, double found) {
  Difference worst;
  worst.error = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  worst.expected = expected;
  worst.found = found;
  error_ = std::max(error_, worst.error);
  exact_ = exact_ && worst.error == 0;
  return record(what, worst, worst.error <= tolerance_);
}

bool Findings::claim(const std::string& what, bool holds) { return record(what, {}, holds); }

}  // namespace regard::checking
