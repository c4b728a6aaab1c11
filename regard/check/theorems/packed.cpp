// Packed sequences give what each gives alone, and what padded rows give.

#include <algorithm>
#include <limits>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

// x (B, N, D) as B sequences of falling length, one after the other: (1, T, D).
struct Packing {
  std::vector<int64_t> lengths;
  Case packed;
};

Packing pack(const Case& example) {
  Packing packing;
  std::vector<at::Tensor> pieces;
  std::vector<int64_t> bounds = {0};
  for (int64_t b = 0; b < example.batch(); ++b) {
    packing.lengths.push_back(std::max<int64_t>(1, example.tokens() - 2 * b));
    pieces.push_back(example.x[b].slice(0, 0, packing.lengths.back()));
    bounds.push_back(bounds.back() + packing.lengths.back());
  }
  packing.packed = example.with_x(at::cat(pieces, 0).unsqueeze(0)).with_input("cu_seqlens", at::tensor(bounds));
  if (!example.grid.empty()) packing.packed.grid = {bounds.back() - example.prefix};
  return packing;
}

// Sequence b of the packed call alone.
Case alone(const Case& packed, const Packing& packing, size_t b) {
  int64_t begin = 0;
  for (size_t i = 0; i < b; ++i) begin += packing.lengths[i];
  Case single = packed.with_x(packed.x.slice(1, begin, begin + packing.lengths[b]));
  single.inputs.erase("cu_seqlens");
  if (!single.grid.empty()) single.grid = {packing.lengths[b] - single.prefix};
  return single;
}

// Outputs of the sequences one by one: (1, T, D) of a mixer, (S, D) of a pool.
at::Tensor one_by_one(const Case& packed, const Packing& packing, const std::string& path) {
  std::vector<at::Tensor> outputs;
  for (size_t b = 0; b < packing.lengths.size(); ++b) outputs.push_back(call(alone(packed, packing, b), path));
  return at::cat(outputs, packed.per_token ? 1 : 0);
}

class Packed final : public Theorem {
 public:
  const char* name() const override { return "packed"; }
  const char* statement() const override {
    return "packed sequences give what each gives alone, and what padding gives";
  }
  double tolerance() const override { return 1e-11; }  // rounding of torch's own products
  std::string excuse(const Subject& subject) const override {
    return subject.info->role == Role::host ? "its input is an image, not a sequence" : "";
  }
  bool wants(const Case& example) const override {
    const int64_t least = example.instance->info().needs_prefix ? 1 : 0;
    return example.inputs.empty() && example.x.dim() == 3 && example.grid.size() <= 1 && example.prefix == least &&
           example.tokens() > 1;
  }

  void run(const Case& example, Findings& findings) const override {
    const Packing packing = pack(example);
    for (const std::string& path : example.paths) {
      findings.at(packing.packed, path);
      Evaluation together;
      try {
        together = evaluate(packing.packed, path);
      } catch (const Refusal& refusal) {
        findings.refuse(refusal.what());
        continue;
      }
      const Evaluation apart = evaluate(packing.packed, [&](const Case& c) { return one_by_one(c, packing, path); });
      findings.compare("packed output equals that of the sequences one by one", apart.output, together.output);
      for (size_t i = 0; i < together.gradients.size(); ++i) {
        findings.compare("packed gradient of " + together.names[i] + " equals that of the sequences one by one",
                         apart.gradients[i], together.gradients[i], scale_of(apart, i));
      }
      poison(packing, path, together.output, findings);
      padded(example, packing, path, together.output, findings);
    }
  }

 private:
  static void poison(const Packing& packing, const std::string& path, const at::Tensor& before, Findings& findings) {
    at::Tensor x = packing.packed.x.clone();
    x.slice(1, 0, packing.lengths.front()).fill_(std::numeric_limits<double>::quiet_NaN());
    const at::Tensor after = call(packing.packed.with_x(x), path);
    const int64_t axis = packing.packed.per_token ? 1 : 0, begin = axis ? packing.lengths.front() : 1;
    findings.compare("NaN in sequence 0 reaches no other sequence", before.slice(axis, begin),
                     after.slice(axis, begin));
  }

  // Where lengths are taken: the same sequences as padded rows.
  static void padded(const Case& example, const Packing& packing, const std::string& path, const at::Tensor& together,
                     Findings& findings) {
    const auto& ports = example.instance->info().inputs;
    if (std::none_of(ports.begin(), ports.end(), [](const Port& port) { return port.name == "lengths"; })) return;
    at::Tensor rows;
    try {
      rows = call(example.with_input("lengths", at::tensor(packing.lengths)), path);
    } catch (const Refusal& refusal) {
      return findings.note("lengths are refused where packing is taken", refusal.what());
    }
    std::vector<at::Tensor> real;
    for (size_t b = 0; b < packing.lengths.size(); ++b) {
      const at::Tensor row = rows.slice(0, static_cast<int64_t>(b), static_cast<int64_t>(b) + 1);
      real.push_back(example.per_token ? row.slice(1, 0, packing.lengths[b]) : row);
    }
    findings.compare("packed output equals that of padded rows", at::cat(real, example.per_token ? 1 : 0), together);
  }
};

}  // namespace

std::unique_ptr<Theorem> packed() { return std::make_unique<Packed>(); }

}  // namespace regard::checking
