#include "regard/nn/pooling/token_pooling.h"

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>

#include "regard/base/error.h"
#include "regard/nn/pooling/token_pooling_clusters.h"
#include "regard/nn/shapes.h"
#include "regard/ops/call.h"

namespace regard {
namespace {

using Config = TokenPooling::Config;
constexpr const char* id = "token-pooling";
constexpr double infinity = std::numeric_limits<double>::infinity();

// keep_rate as a fraction of 2^30, rounded up, so that sizes known only at run time are multiplied as integers.
constexpr int64_t parts = int64_t{1} << 30;
int64_t kept_parts(const Config& config) { return static_cast<int64_t>(std::ceil(config.keep_rate * parts)); }

/// The tokens of a call behind its prefix, and what is kept of them.
struct Clustering {
  at::Tensor x;       ///< (B, N, D), padding zeroed
  at::Tensor w;       ///< (B, N), 0 at padding
  at::Tensor padded;  ///< (B, N) or undefined
  c10::SymInt K;
  at::Tensor own;     ///< (B) int64: clusters of each row; undefined: K
  at::Tensor unused;  ///< (B, K), true behind the clusters of a row; undefined: none
  at::Tensor first;   ///< (B, K) int64: the tokens at which the clusters start
};

void count_clusters(const Config& config, const at::Tensor& lengths, Clustering& c) {
  const c10::SymInt N = c.x.sym_size(1);
  const auto known = N.maybe_as_int();
  require(!known || *known > 0, id, "at least one token behind the prefix", "none");
  if (config.count > 0) {
    require(!known || config.count <= *known, id, "count <= the number of tokens",
            std::to_string(config.count) + " of " + (known ? std::to_string(*known) : ""));
    c.K = config.count;
    if (!lengths.defined()) return;
    // A row without any token has nothing to keep; one with fewer than count is refused.
    const at::Tensor empty = lengths.eq(0);
    if (ops::concrete(lengths) && lengths.numel() > 0 && lengths.is_cpu()) {
      const int64_t least = lengths.masked_fill(empty, config.count).min().item<int64_t>();
      require(config.count <= least, id, "count <= the number of tokens in every row",
              std::to_string(config.count) + " of " + std::to_string(least));
    }
    c.own = at::full_like(lengths, config.count).masked_fill(empty, 0);
    c.unused = empty.unsqueeze(1).expand_symint({lengths.sym_size(0), c.K});
    return;
  }
  const int64_t kept = kept_parts(config);
  c.K = (N * kept / parts).max(c10::SymInt(1));
  if (!lengths.defined()) return;
  c.own = at::div(lengths * kept, parts, "floor").clamp_min(1).masked_fill(lengths.eq(0), 0);
  c.unused = at::arange(at::Scalar(c.K), c.own.options()).unsqueeze(0).ge(c.own.unsqueeze(1));
}

/// (B, P + N) or (B, P + N, 1), from the call or from the blackboard; ones when unweighted.
at::Tensor significance(const Config& config, const at::Tensor& given, Context& context, at::ScalarType type) {
  const at::Tensor weight = context.input("weight"), published = context.consume("significance");
  if (!config.weighted) {
    require(!weight.defined(), id, "no weight with weighted false", "weight");
    return at::ones_symint({given.sym_size(0), given.sym_size(1)}, given.options().dtype(type));
  }
  require(weight.defined() || published.defined(), id,
          "the input weight, or significance that an attention before published, with weighted", "neither");
  require(!weight.defined() || !published.defined(), id, "weight or significance", "both");
  at::Tensor w = weight.defined() ? weight : published;
  const char* name = weight.defined() ? "weight" : "significance";
  const bool column = w.dim() == 3 && w.sym_size(2) == 1;
  if (column) w = w.squeeze(2);
  if (w.dim() != 2 || w.sym_size(0) != given.sym_size(0) || w.sym_size(1) != given.sym_size(1) ||
      !w.is_floating_point())
    fail(id, std::string(name) + " (B, N), floating, for the tokens of x " + describe(given), describe(w));
  return config.weight_gradient ? w.to(type) : w.detach().to(type);
}

/// (B, K) tokens at which the clusters start.
at::Tensor starts(const Config& config, const Clustering& c) {
  if (!config.weighted) return farthest_points(c.x.detach(), c.padded, c.K);
  at::Tensor rank = c.w.detach();
  if (c.padded.defined()) rank = rank.masked_fill(c.padded, -infinity);
  return std::get<1>(rank.sort(/*stable=*/true, 1, /*descending=*/true)).slice_symint(1, 0, c.K);
}

/// The first nearest cluster of each token, (B, N), from distances (B, N, K).
at::Tensor nearest(const Clustering& c, at::Tensor distances) {
  if (c.unused.defined()) distances = distances.masked_fill(c.unused.unsqueeze(1), infinity);
  return distances.argmin(2);
}

/// (B, K, N), true where token n is in cluster k.
at::Tensor members(const Clustering& c, const at::Tensor& assignment) {
  const at::Tensor in = assignment.unsqueeze(1).eq(at::arange(at::Scalar(c.K), assignment.options()).view({1, -1, 1}));
  return c.padded.defined() ? at::logical_and(in, c.padded.logical_not().unsqueeze(1)) : in;
}

at::Tensor tokens_at(const at::Tensor& x, const at::Tensor& index) {
  return x.gather(1, index.unsqueeze(2).expand_symint({index.sym_size(0), index.sym_size(1), x.sym_size(2)}));
}

/// Centers (B, K, D) and the assignment. The means are differentiable in x, and in w where it asks.
std::pair<at::Tensor, at::Tensor> k_means(const Config& config, const Clustering& c, const at::Tensor& shift) {
  at::Tensor centers = tokens_at(c.x, c.first);
  const auto assign = [&] { return nearest(c, squared_distances((c.x - shift).detach(), (centers - shift).detach())); };
  for (int64_t step = 0; step < config.iterations; ++step) {
    const at::Tensor w = members(c, assign()).to(c.x.scalar_type()) * c.w.unsqueeze(1);
    const at::Tensor sum = w.sum(2, /*keepdim=*/true), none = sum.le(0);
    centers = at::where(none, centers, at::matmul(w, c.x) / sum.masked_fill(none, 1));
  }
  return {centers, assign()};
}

/// Medoid indices (B, K) and the assignment.
std::pair<at::Tensor, at::Tensor> k_medoids(const Config& config, const Clustering& c, const at::Tensor& shift) {
  const bool third_party = config.variant == "thirdparty-kmedoids";
  const at::Tensor x = (c.x - shift).detach(), w = c.w.detach();
  const c10::SymInt N = x.sym_size(1);
  at::Tensor d = squared_distances(x, x);
  const at::Tensor place = at::arange(at::Scalar(N), x.options().dtype(at::kLong));
  d = d.masked_fill(place.unsqueeze(0).eq(place.unsqueeze(1)), 0);
  if (third_party || config.distance == "euclidean") d = d.sqrt();
  at::Tensor index = c.first;
  const auto assign = [&] {
    return nearest(c, d.gather(2, index.unsqueeze(1).expand_symint({d.sym_size(0), N, c.K})));
  };
  const at::Tensor everywhere = c.padded.defined() ? d.masked_fill(c.padded.unsqueeze(1), 0) : d;
  for (int64_t step = 0; step < config.iterations; ++step) {
    const at::Tensor a = assign(), in = members(c, a);
    at::Tensor cost;
    if (third_party) {
      cost = w * everywhere.sum(2);
    } else {
      const at::Tensor together = a.unsqueeze(1).eq(a.unsqueeze(2));
      cost = at::matmul(d.masked_fill(together.logical_not(), 0), w.unsqueeze(2)).squeeze(2);
    }
    const at::Tensor best = cost.unsqueeze(1).masked_fill(in.logical_not(), infinity).argmin(2);
    const at::Tensor occupied = in.any(2);
    index = at::where(occupied, best, third_party ? at::zeros_like(index) : index);
  }
  return {index, assign()};
}

Clustering clustering_of(const Config& config, const at::Tensor& given, Context& context) {
  const int64_t prefix = context.prefix;
  const at::ScalarType type = at::toOpMathType(given.scalar_type());
  Clustering c;
  c.x = given.slice(1, prefix).to(type);
  c.w = significance(config, given, context, type).slice(1, prefix);
  at::Tensor lengths = context.input("lengths");
  if (lengths.defined()) {
    lengths = (lengths.to(at::kLong) - prefix).clamp_min(0);
    c.padded = padding(lengths, c.x.sym_size(1));
    c.x = c.x.masked_fill(c.padded.unsqueeze(2), 0);
    c.w = c.w.masked_fill(c.padded, 0);
  }
  count_clusters(config, lengths, c);
  c.first = starts(config, c);
  c.K = c.first.sym_size(1);  // as traced sizes print it
  return c;
}

}  // namespace

at::Tensor TokenPooling::forward(const Config& config, const Weights&, const at::Tensor& given, Context& context) {
  context.whole_only(id, "a choice among all tokens");
  const bool medoids = config.variant != "kmeans";
  require(medoids || !context.wants("center_index"), id, "center_index of medoids, which are tokens", "variant kmeans");
  const Clustering c = clustering_of(config, given, context);
  // Distances do not change when every token moves; near 0 they are sums of smaller numbers.
  const at::Tensor shift = c.x.detach().mean(1, /*keepdim=*/true);
  auto [found, assignment] = medoids ? k_medoids(config, c, shift) : k_means(config, c, shift);
  at::Tensor y = medoids ? tokens_at(c.x, found) : found;
  if (c.unused.defined()) y = y.masked_fill(c.unused.unsqueeze(2), 0);

  if (context.wants("center_index"))
    context.output("center_index", c.unused.defined() ? found.masked_fill(c.unused, -1) : found);
  if (context.wants("sizes")) context.output("sizes", members(c, assignment).sum(2));
  if (context.wants("assignment"))
    context.output("assignment", c.padded.defined() ? assignment.masked_fill(c.padded, -1) : assignment);
  if (context.wants("lengths")) {
    const at::Tensor all = at::full_symint({given.sym_size(0)}, at::Scalar(c.K), assignment.options());
    context.output("lengths", (c.own.defined() ? c.own : all) + context.prefix);
  }
  y = y.to(given.scalar_type());
  if (context.prefix == 0) return y;
  at::Tensor front = given.slice(1, 0, context.prefix);
  if (context.input("lengths").defined())
    front = front.masked_fill(padding(context.input("lengths"), context.prefix).unsqueeze(2), 0);
  return at::cat({front, y}, 1);
}

REGARD_MECHANISM(TokenPooling)

}  // namespace regard
