#include "regard/check/shrink.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "regard/check/call.h"

namespace regard::checking {

std::string kind_of(const std::string& claim) {
  std::string kind;
  for (const char letter : claim) {
    if (letter < '0' || letter > '9') kind += letter;
  }
  return kind;
}

namespace {

using Clock = std::chrono::steady_clock;
// Enough for every token and weight of a small call, so that equal options give equal reports; the clock is for modules
// that take seconds a call.
constexpr int kAttempts = 300;
constexpr auto kPatience = std::chrono::seconds(15);

class Shrinker {
 public:
  Shrinker(const Theorem& theorem, const Counterexample& found)
      : theorem_(theorem), kind_(kind_of(found.what)), best_(found) {}

  Counterexample run() {
    if (!best_.path.empty()) best_.origin->paths = {best_.path};
    drop_inputs();
    cut_batch();
    cut_tokens();
    simplify_weights();
    simplify_tokens();
    return best_;
  }

 private:
  const Case& now() const { return *best_.origin; }

  // Keeps the candidate if the same kind of claim fails on it.
  bool attempt(const Case& candidate) {
    if (++attempts_ > kAttempts || Clock::now() > end_) return false;
    Findings findings(theorem_.tolerance());
    findings.look_for(kind_);
    findings.begin(candidate);
    try {
      if (!theorem_.wants(candidate)) return false;
      theorem_.run(candidate, findings);
    } catch (const std::exception& exception) {
      findings.claim("the call runs; raised: " + message_of(exception), false);
    }
    if (!findings.failed()) return false;
    best_ = *findings.counterexample();
    return true;
  }

  void drop_inputs() {
    const auto inputs = now().inputs;
    for (const auto& [name, tensor] : inputs) {
      Case candidate = now();
      candidate.inputs.erase(name);
      attempt(candidate);
    }
    if (now().prefix > 0 && now().grid.empty()) {
      Case candidate = now();
      candidate.prefix = 0;
      attempt(candidate);
    }
  }

  void cut_batch() {
    for (int64_t count = 1; count < now().batch(); ++count) {
      for (int64_t begin = 0; begin + count <= now().batch(); ++begin) {
        if (attempt(now().rows(begin, begin + count))) return;
      }
    }
  }

  // The first tokens, the last of them padding.
  Case padded_to(int64_t count) const {
    Case candidate = now().first_tokens(count);
    if (candidate.has("lengths"))
      candidate.inputs["lengths"] = candidate.inputs["lengths"].clamp_max(std::max(now().prefix + 1, count - 1));
    return candidate;
  }

  void cut_tokens() {
    if (now().x.dim() != 3) return;
    const int64_t before = now().tokens();
    for (int64_t count = now().prefix + 1; count < before; ++count) {
      if (attempt(now().first_tokens(count)) || attempt(padded_to(count))) break;
    }
    if (!now().has("memory")) return;
    const int64_t keys = now().inputs.at("memory").size(1);
    for (int64_t count = 1; count < keys; ++count) {
      Case candidate = now().with_input("memory", now().inputs.at("memory").slice(1, 0, count));
      if (candidate.has("memory_lengths"))
        candidate.inputs["memory_lengths"] = candidate.inputs["memory_lengths"].clamp_max(count);
      if (attempt(candidate)) break;
    }
  }

  bool attempt_weight(size_t index, const at::Tensor& value) {
    if (at::equal(now().weights[index], value)) return true;
    Case candidate = now();
    candidate.weights[index] = value;
    retie(candidate);
    return attempt(candidate);
  }

  void simplify_weights() {
    const auto& declared = now().instance->weights();
    for (size_t i = 0; i < declared.size(); ++i) {
      const at::Tensor weight = now().weights[i];
      if (!weight.is_floating_point() || !declared[i].alias.empty() || declared[i].buffer) continue;
      if (attempt_weight(i, at::zeros_like(weight))) continue;
      if (weight.dim() == 2 && attempt_weight(i, at::eye(weight.size(0), weight.size(1), weight.options()))) continue;
      if (attempt_weight(i, at::ones_like(weight))) continue;
      attempt_weight(i, at::round(2 * weight));
    }
  }

  bool attempt_x(const at::Tensor& x) { return at::equal(x, now().x) || attempt(now().with_x(x)); }

  void simplify_tokens() {
    for (const at::Tensor& x : {at::zeros_like(now().x), at::ones_like(now().x), at::round(now().x),
                                at::round(2 * now().x), at::round(10 * now().x) / 10}) {
      if (attempt_x(x)) break;
    }
    for (const auto& [name, tensor] : std::map(now().inputs)) {
      if (tensor.is_floating_point()) attempt(now().with_input(name, at::round(2 * tensor)));
    }
    if (now().x.dim() != 3) return;
    for (int64_t b = 0; b < now().batch(); ++b) {
      for (int64_t n = 0; n < now().tokens(); ++n) {
        at::Tensor x = now().x.clone();
        x[b][n].zero_();
        if (!attempt_x(x)) simplify_token(b, n);
      }
    }
  }

  void simplify_token(int64_t b, int64_t n) {
    for (int64_t d = 0; d < now().x.size(2); ++d) {
      at::Tensor x = now().x.clone();
      x[b][n][d] = 0;
      attempt_x(x);
    }
  }

  const Theorem& theorem_;
  std::string kind_;
  Counterexample best_;
  int attempts_ = 0;
  Clock::time_point end_ = Clock::now() + kPatience;
};

}  // namespace

Counterexample shrunk(const Theorem& theorem, const Counterexample& found) {
  return found.origin ? Shrinker(theorem, found).run() : found;
}

}  // namespace regard::checking
