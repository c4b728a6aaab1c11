#include "tests/kernels/cases.h"

#include <cmath>

namespace regard::kernels::testing {
namespace {

Expr real(const std::string& name, std::vector<Expr> index) { return capture(name, Type::real, std::move(index)); }
Expr integer(const std::string& name, std::vector<Expr> index) {
  return capture(name, Type::integer, std::move(index));
}

void give(Problem& p, const std::string& name, std::vector<int64_t> sizes, std::mt19937& random) {
  p.captures[name] = {Type::real, random_normal(std::move(sizes), random)};
}

void give_integers(Problem& p, const std::string& name, std::vector<int64_t> sizes, int low, int high,
                   std::mt19937& random) {
  p.captures[name] = {Type::integer, random_integers(std::move(sizes), low, high, random)};
}

Expr raw() { return scale() * dot(); }
Expr distance() { return cast(query() - key(), Type::real); }

void give_operand(Problem& p, const std::string& name, int64_t heads, int64_t width, std::mt19937& random) {
  p.operands[name] = {random_normal({p.B, heads, p.M, width}, random), random_normal({p.B, heads, p.N, width}, random)};
}

/// Terms added to a score: one for each class of captured tensor, and functions of the pair.
using Term = std::function<Expr(Problem&, std::mt19937&)>;
const std::vector<std::pair<std::string, Term>>& score_terms() {
  static const std::vector<std::pair<std::string, Term>> terms{
      {"alibi",
       [](Problem& p, std::mt19937& r) {
         give(p, "slopes", {p.H}, r);
         return -real("slopes", {head()}) * abs(distance()) * 0.1;
       }},
      {"scalar",
       [](Problem& p, std::mt19937& r) {
         give(p, "one", {1}, r);
         return real("one", {Expr(0)}) * distance() * 0.05;
       }},
      {"query bias",
       [](Problem& p, std::mt19937& r) {
         give(p, "by_query", {p.B, p.M}, r);
         return real("by_query", {batch(), row()}) * sigmoid(raw());
       }},
      {"key bias",
       [](Problem& p, std::mt19937& r) {
         give(p, "by_key", {p.B, p.H, p.N}, r);
         return real("by_key", {batch(), head(), column()});
       }},
      {"pair bias",
       [](Problem& p, std::mt19937& r) {
         give(p, "bias", {p.M, p.N}, r);
         return real("bias", {row(), column()});
       }},
      {"head bias",
       [](Problem& p, std::mt19937& r) {
         give(p, "head_bias", {p.H, p.M, p.N}, r);
         return real("head_bias", {head(), row(), column()});
       }},
      {"offsets",
       [](Problem& p, std::mt19937& r) {
         give(p, "table", {p.H, p.M + p.N}, r);
         return real("table", {head(), row() - column() + keys()});
       }},
      {"blocks",
       [](Problem& p, std::mt19937& r) {
         give(p, "coarse", {p.M / 3 + 1, p.N / 5 + 1}, r);
         return real("coarse", {floor_div(row(), 3), floor_div(column(), 5)});
       }},
      {"lookup",
       [](Problem& p, std::mt19937& r) {
         give_integers(p, "bucket", {p.M, p.N}, 0, 6, r);
         give(p, "values", {7, p.H}, r);
         return real("values", {integer("bucket", {row(), column()}), head()});
       }},
      {"gates",
       [](Problem& p, std::mt19937& r) {
         give(p, "gate", {p.B, p.H, std::max(p.M, p.N)}, r);
         return (real("gate", {batch(), head(), row()}) - real("gate", {batch(), head(), column()})) * 0.3;
       }},
      {"smooth",
       [](Problem&, std::mt19937&) { return cos(distance() * 0.3) + sin(cast(key(), Type::real)) * tanh(raw()); }},
      {"clipped", [](Problem&, std::mt19937&) { return min(max(raw(), -0.5), 0.7) + abs(raw() + 0.1); }},
      {"roots", [](Problem&, std::mt19937&) { return sqrt(abs(raw()) + 0.5) + log(1.0 + exp(raw())); }},
      {"modulo",
       [](Problem&, std::mt19937&) {
         return where((query() - key()) % 3 == 1, raw(), cast(floor_div(key(), 2) % 5, Type::real) * 0.1);
       }},
      {"powers",
       [](Problem&, std::mt19937&) { return pow(abs(raw()) + 0.2, 1.5) / (1.0 + floor(abs(distance()) * 0.25)); }},
  };
  return terms;
}

const std::vector<std::pair<std::string, Term>>& mask_terms() {
  static const std::vector<std::pair<std::string, Term>> terms{
      {"causal", [](Problem&, std::mt19937&) { return masks::causal(); }},
      {"window", [](Problem&, std::mt19937&) { return masks::window(9, 4); }},
      {"lengths",
       [](Problem& p, std::mt19937& r) {
         give_integers(p, "lengths", {p.B}, 0, static_cast<int>(p.N), r);
         return masks::lengths("lengths");
       }},
      {"documents",
       [](Problem& p, std::mt19937& r) {
         give_integers(p, "query_ids", {p.B, p.M}, 0, 2, r);
         give_integers(p, "key_ids", {p.B, p.N}, 0, 2, r);
         return masks::documents("query_ids", "key_ids");
       }},
      {"rows", [](Problem&, std::mt19937&) { return row() % 4 != 2; }},
      {"strided", [](Problem&, std::mt19937&) { return (row() - column()) % 2 == 0; }},
      {"heads", [](Problem&, std::mt19937&) { return (head() % 2 == 0) | (query() >= key()); }},
      {"boolean",
       [](Problem& p, std::mt19937& r) {
         p.captures["allowed"] = {Type::boolean, random_integers({p.M, p.N}, 0, 1, r)};
         return capture("allowed", Type::boolean, {row(), column()});
       }},
  };
  return terms;
}

const std::vector<std::pair<std::string, Term>>& weight_terms() {
  static const std::vector<std::pair<std::string, Term>> terms{
      {"gate",
       [](Problem& p, std::mt19937& r) {
         give(p, "row_gate", {p.H, p.M}, r);
         return sigmoid(real("row_gate", {head(), row()}));
       }},
      {"dot gate", [](Problem&, std::mt19937&) { return sigmoid(dot() * 0.5); }},
      {"decay",
       [](Problem& p, std::mt19937& r) {
         give(p, "rate", {p.H}, r);
         return exp(-abs(real("rate", {head()}) * distance()) * 0.1);
       }},
      {"mask",
       [](Problem& p, std::mt19937& r) {
         give(p, "dropped", {p.B, p.H, p.M, p.N}, r);
         return real("dropped", {batch(), head(), row(), column()});
       }},
  };
  return terms;
}

void ranges(Problem& p, std::mt19937&) {
  const int64_t half = p.Dh / 2;
  p.spec.score = scale() * dot(half, -1) * 0.7;
  if (half > 0) p.spec.score = p.spec.score + scale() * dot(0, half) * cos(distance());
}

void operands(Problem& p, std::mt19937& r) {
  give_operand(p, "x", p.Hk, 5, r);
  give_operand(p, "shared", 1, 3, r);
  p.spec.score = raw() + dot("x") * 0.2 - tanh(dot("shared"));
}

void one_head(Problem& p, std::mt19937& r) {
  give_operand(p, "x", p.H, 4, r);
  p.spec.score = dot("x", 0) * 0.3 + dot("x", p.H - 1) * 0.2 + raw();
  p.spec.weight = sigmoid(dot("x"));
}

void no_dot(Problem& p, std::mt19937& r) { p.spec.score = score_terms()[6].second(p, r); }

void sinks(Problem& p, std::mt19937& r) {
  p.spec.normalizer.sinks = true;
  p.sinks = random_normal({p.H, 2}, r);
  p.spec.keep = masks::window(3, 0);
}

void counted_more(Problem& p, std::mt19937&) {
  p.spec.keep = masks::causal() & (column() % 3 != 1);
  p.spec.counted = masks::causal();
}

void counted_other(Problem& p, std::mt19937& r) {
  p.spec.keep = masks::causal();
  p.spec.counted = masks::window(5, 5) & (row() % 5 != 3);
  p.spec.weight = weight_terms()[0].second(p, r);
}

void guarded(Problem& p, std::mt19937& r) {
  give(p, "short", {5}, r);
  give(p, "near", {4}, r);
  p.spec.keep = (column() < 5) & (query() >= key()) & (query() - key() < 4);
  p.spec.score = raw() + real("short", {column()}) + real("near", {query() - key()});
  p.spec.counted = Expr();
}

using Kind = Normalizer::Kind;
using Build = std::function<void(Problem&, std::mt19937&)>;

Normalizer normalizer_of(Kind kind) {
  Normalizer normalizer;
  normalizer.kind = kind;
  if (kind == Kind::z_score) normalizer.epsilon = 0.1;  // rows of few keys deviate little, and would magnify rounding
  return normalizer;
}

/// Every normalizer beside softmax, each with its options; masks, weights and other counted pairs spread over them.
const std::vector<std::pair<std::string, Build>>& normalizers() {
  using Divisor = Normalizer::Divisor;
  using Place = Normalizer::EpsilonPlace;
  const auto divided = [](Kind kind, Divisor divisor) {
    Normalizer normalizer = normalizer_of(kind);
    normalizer.divisor = divisor;
    return normalizer;
  };
  const auto placed = [](Place place) {
    Normalizer normalizer = normalizer_of(Kind::z_score);
    normalizer.epsilon_place = place;
    return normalizer;
  };
  const auto detached = [](Kind kind) {
    Normalizer normalizer = normalizer_of(kind);
    normalizer.detach = true;
    return normalizer;
  };
  const auto floored = [](double floor) {
    Normalizer normalizer = normalizer_of(Kind::sum);
    normalizer.floor = floor;
    return normalizer;
  };
  static const std::vector<std::pair<std::string, Normalizer>> all{
      {"signed softmax", normalizer_of(Kind::signed_softmax)},
      {"sum", normalizer_of(Kind::sum)},
      {"sum with floor", floored(2)},
      {"sigmoid", normalizer_of(Kind::sigmoid)},
      {"relu", normalizer_of(Kind::relu)},
      {"relu by keys", divided(Kind::relu, Divisor::keys)},
      {"relu by kept", divided(Kind::relu, Divisor::kept)},
      {"identity", normalizer_of(Kind::identity)},
      {"identity by kept", divided(Kind::identity, Divisor::kept)},
      {"z-score", normalizer_of(Kind::z_score)},
      {"z-score outside", placed(Place::outside)},
      {"z-score inside count", placed(Place::inside_count)},
      {"detached softmax", detached(Kind::softmax)},
      {"detached signed softmax", detached(Kind::signed_softmax)},
      {"detached sum", detached(Kind::sum)},
      {"detached z-score", detached(Kind::z_score)},
  };
  static const std::vector<std::pair<std::string, Build>> builds = [] {
    std::vector<std::pair<std::string, Build>> out;
    for (const auto& [name, normalizer] : all) {
      const Normalizer& n = normalizer;
      out.push_back({name, [n](Problem& p, std::mt19937&) { p.spec.normalizer = n; }});
      out.push_back({name + ", causal", [n](Problem& p, std::mt19937&) {
                       p.spec.normalizer = n;
                       p.spec.keep = masks::causal();
                     }});
      out.push_back({name + ", counted other", [n](Problem& p, std::mt19937& r) {
                       counted_other(p, r);
                       p.spec.normalizer = n;
                       p.spec.score = raw() + score_terms()[3].second(p, r);
                     }});
      out.push_back({name + ", weights", [n](Problem& p, std::mt19937& r) {
                       p.spec.normalizer = n;
                       p.spec.weight = weight_terms()[1].second(p, r);
                       p.spec.keep = mask_terms()[4].second(p, r) & mask_terms()[7].second(p, r);
                     }});
    }
    return out;
  }();
  return builds;
}

std::vector<Mechanism> all_mechanisms() {
  std::vector<Mechanism> all{{"plain", [](Problem&, std::mt19937&) {}}};
  for (const auto& [name, term] : score_terms()) {
    all.push_back({name, [term](Problem& p, std::mt19937& r) {
                     p.spec.score = raw() + term(p, r);
                     p.spec.keep = masks::causal();
                   }});
  }
  for (const auto& [name, term] : mask_terms()) {
    all.push_back({name, [term](Problem& p, std::mt19937& r) { p.spec.keep = term(p, r); }});
  }
  for (const auto& [name, term] : weight_terms()) {
    all.push_back({"weight " + name, [term](Problem& p, std::mt19937& r) {
                     p.spec.weight = term(p, r);
                     p.spec.keep = masks::causal();
                   }});
  }
  all.push_back({"ranges", ranges});
  all.push_back({"operands", operands});
  all.push_back({"one head", one_head});
  all.push_back({"no dot", no_dot});
  all.push_back({"sinks", sinks});
  all.push_back({"counted more", counted_more});
  all.push_back({"counted other", counted_other});
  all.push_back({"guarded", guarded});
  all.push_back({"nothing", [](Problem& p, std::mt19937&) { p.spec.keep = Expr(false); }});
  for (const auto& [name, build] : normalizers()) all.push_back({name, build});
  return all;
}

Problem sized(const Shape4& s, std::mt19937& random) {
  Problem p;
  p.B = s.B, p.H = s.H, p.Hk = s.Hk, p.M = s.M, p.N = s.N, p.Dh = s.Dh, p.Dv = s.Dv;
  p.scale = s.Dh > 0 ? 1 / std::sqrt(static_cast<double>(s.Dh)) : 1;
  p.q = random_normal({p.B, p.H, p.M, p.Dh}, random);
  p.k = random_normal({p.B, p.Hk, p.N, p.Dh}, random);
  p.v = random_normal({p.B, p.Hk, p.N, p.Dv}, random);
  p.grad_o = random_normal({p.B, p.H, p.M, p.Dv}, random);
  p.grad_lse = random_normal({p.B, p.H, p.M}, random);
  return p;
}

}  // namespace

const std::vector<Mechanism>& mechanisms() {
  static const std::vector<Mechanism> all = all_mechanisms();
  return all;
}

const std::vector<Shape4>& shapes() {
  static const std::vector<Shape4> all{{1, 1, 1, 1, 1, 1, 1},    {2, 2, 1, 7, 13, 5, 3},   {1, 2, 1, 63, 129, 8, 17},
                                       {1, 3, 3, 65, 31, 16, 4}, {2, 1, 1, 1, 131, 3, 20}, {1, 3, 1, 130, 1, 2, 7}};
  return all;
}

Problem problem_of(const Mechanism& mechanism, const Shape4& shape, uint32_t seed) {
  std::mt19937 random(seed);
  Problem p = sized(shape, random);
  mechanism.build(p, random);
  return p;
}

Problem random_problem(uint32_t seed) {
  std::mt19937 random(seed);
  auto pick = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  const int64_t lengths[] = {1, 2, 3, 15, 16, 17, 31, 64, 65, 97}, group = pick(1, 3), Hk = pick(1, 2);
  Problem p =
      sized({pick(1, 2), Hk * group, Hk, lengths[pick(0, 9)], lengths[pick(0, 9)], pick(1, 9), pick(1, 20)}, random);
  p.query_offset = pick(0, 1) ? p.N - p.M : 0;
  p.spec.score = raw();
  for (int64_t n = pick(0, 3); n > 0; --n) {
    const auto& terms = score_terms();
    p.spec.score =
        p.spec.score + terms[static_cast<size_t>(pick(0, static_cast<int64_t>(terms.size()) - 1))].second(p, random);
  }
  auto mask = [&] {
    return mask_terms()[static_cast<size_t>(pick(0, static_cast<int64_t>(mask_terms().size()) - 1))].second(p, random);
  };
  if (pick(0, 3) > 0) p.spec.keep = mask();
  if (pick(0, 3) == 0 && p.spec.keep.defined()) p.spec.keep = p.spec.keep & mask();
  if (pick(0, 3) == 0) p.spec.counted = mask();
  if (pick(0, 2) == 0) p.spec.weight = weight_terms()[static_cast<size_t>(pick(0, 3))].second(p, random);
  if (pick(0, 3) == 0) {
    p.spec.normalizer.sinks = true;
    p.sinks = random_normal({p.H, pick(1, 3)}, random);
  } else if (pick(0, 1) == 0) {
    p.spec.normalizer = normalizer_of(static_cast<Kind>(pick(0, 6)));
    const Kind kind = p.spec.normalizer.kind;
    if (kind == Kind::sum) p.spec.normalizer.floor = static_cast<double>(pick(0, 2));
    if (kind == Kind::relu || kind == Kind::identity)
      p.spec.normalizer.divisor = static_cast<Normalizer::Divisor>(pick(0, 2));
    if (kind == Kind::z_score) p.spec.normalizer.epsilon_place = static_cast<Normalizer::EpsilonPlace>(pick(0, 2));
  }
  return p;
}

std::string describe(const Problem& p) {
  std::string text = "B " + std::to_string(p.B) + " H " + std::to_string(p.H) + "/" + std::to_string(p.Hk) + " M " +
                     std::to_string(p.M) + " N " + std::to_string(p.N) + " Dh " + std::to_string(p.Dh) + " Dv " +
                     std::to_string(p.Dv) + " offset " + std::to_string(p.query_offset) + "\n";
  return text + to_string(p.spec);
}

}  // namespace regard::kernels::testing
