// A map (B, D, H, W) gives what its tokens give, read row by row.

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

class Maps final : public Theorem {
 public:
  const char* name() const override { return "maps"; }
  const char* statement() const override { return "a map (B, D, H, W) gives what its tokens give, read row by row"; }
  double tolerance() const override { return 1e-12; }  // rounding: the same sums over another layout
  std::string excuse(const Subject& subject) const override {
    return subject.info->takes_maps ? "" : "it takes no maps";
  }
  bool wants(const Case& example) const override {
    return example.inputs.empty() && example.prefix == 0 && example.x.dim() == 3;
  }

  void run(const Case& example, Findings& findings) const override {
    const int64_t rows = example.tokens() % 2 == 0 ? 2 : 1;
    const at::Tensor map = example.x.transpose(1, 2).unflatten(2, {rows, example.tokens() / rows});
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const at::Tensor expected = call(example, path);
      const at::Tensor found = call(example.with_x(map), path);
      const bool pool = !example.per_token;
      findings.compare("the map's output equals the tokens'", expected,
                       pool ? found : found.flatten(2).transpose(1, 2));
    }
  }
};

}  // namespace

std::unique_ptr<Theorem> maps() { return std::make_unique<Maps>(); }

}  // namespace regard::checking
