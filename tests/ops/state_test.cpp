#include "regard/ops/state.h"

#include <gtest/gtest.h>

#include "regard/ops/executor.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/split.h"

namespace regard {
namespace {

struct Tensors {
  at::Tensor q = at::randn({2, 4, 5, 6}, at::kDouble), k = at::randn({2, 2, 7, 6}, at::kDouble),
             v = at::randn({2, 2, 7, 3}, at::kDouble);
};

TEST(State, EveryNormalizerInParts) {
  const Tensors t;
  for (const char* kind : {"softmax", "signed_softmax", "sum", "sigmoid", "relu", "identity", "z_score"}) {
    AttentionSpec spec;
    spec.normalizer.kind = normalizer_from_name(kind);
    spec.keep = masks::window(3, 2);
    const AttentionOutput whole = attention(t.q, t.k, t.v, spec);
    for (const int64_t parts : {1, 2, 9}) {
      const AttentionOutput out = attention_in_parts(t.q, t.k, t.v, spec, {}, parts);
      EXPECT_TRUE(at::allclose(out.o, whole.o, 1e-11, 1e-11)) << kind;
      EXPECT_TRUE(at::allclose(out.lse, whole.lse, 1e-11, 1e-11)) << kind;
    }
  }
}

TEST(State, AnUndefinedStateIsNeutral) {
  const Tensors t;
  const State state = absorb(t.q, t.k, t.v, {}, {});
  EXPECT_TRUE(merge({}, {}, state)["o"].equal(state["o"]));
  EXPECT_TRUE(merge({}, state, {})["lse"].equal(state["lse"]));
}

TEST(Executors, AreFoundByName) {
  EXPECT_EQ(make_executor("local"), nullptr);
  EXPECT_EQ(make_executor("split:3")->text(), "split:3");
  EXPECT_EQ(make_executor("stripe")->text(), "stripe");
  EXPECT_FALSE(make_executor("stripe")->sharded());
}

TEST(Offers, NameWhatIsMissing) {
  AttentionSpec spec;
  spec.score = scale() * dot() + capture("bias", Type::real, {row(), column()});
  EXPECT_EQ(to_string(offers(spec)),
            "merge, commutative; not shards: capture 'bias' is read by row() and column() together: no shard holds its "
            "entries of all pairs");
  EXPECT_EQ(to_string(offers(AttentionSpec{})), "merge, commutative, shards");
}

}  // namespace
}  // namespace regard
