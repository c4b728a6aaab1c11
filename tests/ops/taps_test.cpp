// Reductions of the map and edits of the weights through the C++ functions, against the map itself.
#include "regard/ops/taps.h"

#include "regard/ops/attention_map.h"
#include "support.h"

namespace regard::testing {
namespace {

at::Tensor map_of(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec) {
  return attention_rows(q, k, at::arange(q.size(2), at::kLong), to_json(spec));
}

TEST(Taps, AreReductionsOfTheMap) {
  const at::Tensor q = normal({2, 4, 5, 3}, 1), k = normal({2, 2, 6, 3}, 2);
  AttentionSpec spec;
  spec.keep = query() + 1 >= key();
  const auto measured = [&](const Tensors& in) {
    return attention_taps(in[0], in[1], spec, {}, {"sum_of_squares", "column_sums", "blocks:2x3", "mass:0,2-3", "max"});
  };
  const auto expected = [&](const Tensors& in) {
    const at::Tensor p = map_of(in[0], in[1], spec);
    const auto blocks = [&](int64_t i, int64_t j) {
      return p.slice(2, 2 * i, 2 * i + 2).slice(3, 3 * j, 3 * j + 3).mean(at::IntArrayRef{2, 3});
    };
    Tensors rows;
    for (int64_t i = 0; i < 3; ++i) rows.push_back(at::stack({blocks(i, 0), blocks(i, 1)}, -1));
    return Tensors{p.square().sum(-1), p.sum(2), at::stack(rows, 2), p.select(3, 0) + p.select(3, 2) + p.select(3, 3),
                   p.amax(-1)};
  };
  expect_same(derivatives(measured, {q, k}), derivatives(expected, {q, k}), 1e-9, "taps");
}

TEST(Edits, ReachTheirTensorsAndPairOutputs) {
  const at::Tensor q = normal({1, 2, 4, 3}, 1), k = normal({1, 2, 5, 3}, 2), v = normal({1, 2, 5, 2}, 3),
                   gate = normal({5}, 4);
  AttentionSpec spec;
  spec.pair_outputs.push_back({cast(key(), Type::real), {}, 1});
  const auto edited = [&](const Tensors& in) {
    const ops::WeightEdit edit{[](const at::Tensor& w, const ops::Rows&, const Tensors& t) { return w * t[0]; },
                               {in[3]}};
    const AttentionOutput out = ops::attention_edited(in[0], in[1], in[2], spec, {}, {edit});
    return Tensors{out.o, out.pairs};
  };
  AttentionSpec plain;
  const auto expected = [&](const Tensors& in) {
    const at::Tensor w = map_of(in[0], in[1], plain) * in[3];
    return Tensors{at::matmul(w, in[2]), (w * at::arange(5)).sum(-1, true)};
  };
  expect_same(derivatives(edited, {q, k, v, gate}), derivatives(expected, {q, k, v, gate}), 1e-9, "edited");
}

TEST(Edits, ATensorThatTheyHideIsRefused) {
  const at::Tensor q = normal({1, 1, 4, 3}, 1), gate = normal({4}, 4);
  const ops::WeightEdit hiding{[&](const at::Tensor& w, const ops::Rows&, const Tensors&) { return w * gate; }, {}};
  const ops::WeightEdit cutting{[&](const at::Tensor& w, const ops::Rows&, const Tensors&) { return w.sum(-1); }, {}};
  const auto message = [&](const ops::WeightEdit& edit) {
    return message_of([&] { ops::attention_edited(q, q, q, AttentionSpec(), {}, {edit}); });
  };
  EXPECT_NE(message(hiding).find("[edit] expected every tensor that needs a gradient among the edit's tensors"),
            std::string::npos);
  EXPECT_NE(message(cutting).find("[edit] expected weights like those given"), std::string::npos);
}

}  // namespace
}  // namespace regard::testing
