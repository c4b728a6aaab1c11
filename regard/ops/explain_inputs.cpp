// Random inputs for `regard explain SPEC --shape`.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "regard/algebra/interval.h"
#include "regard/base/error.h"
#include "regard/ops/explain.h"

namespace regard {

ExplainShape explain_shape(const std::string& function, const std::string& text) {
  const auto refuse = [&] {
    fail(function, "--shape B,H,M,N,D[,Dv[,Hk]], 5 to 7 positive integers", "'" + text + "'");
  };
  std::vector<int64_t> sizes;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    if (part.empty() || part.size() > 12 || part.find_first_not_of("0123456789") != std::string::npos) refuse();
    sizes.push_back(std::stoll(part));
  }
  if (sizes.size() < 5 || sizes.size() > 7 || text.back() == ',') refuse();
  if (std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size < 1; })) refuse();
  ExplainShape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[4], sizes[1]};
  if (sizes.size() > 5) shape.Dv = sizes[5];
  if (sizes.size() > 6) shape.Hk = sizes[6];
  if (shape.H % shape.Hk != 0)
    fail(function, "--shape with Hk that divides H", std::to_string(shape.Hk) + " and " + std::to_string(shape.H));
  return shape;
}

namespace ops {
namespace {

constexpr int64_t kMostHeads = 4096;       // (batch, head) pairs over which index ranges are taken
constexpr double kMostElements = 1 << 30;  // of a random capture

/// Sizes that hold every index with which the spec reads this capture.
std::vector<int64_t> sizes_of(const Expr& read, const ExplainShape& shape) {
  const CaptureRange integers = [&](const std::string&, const std::vector<Interval>&) {
    return Interval{0, static_cast<double>(shape.N - 1)};
  };
  std::vector<int64_t> sizes;
  double elements = 1;
  for (const Expr& index : read.node().args) {
    double most = 0;
    for (int64_t bh = 0; bh < std::min(shape.B * shape.H, kMostHeads); ++bh) {
      Tile tile;
      const int64_t at = shape.B * shape.H - 1 - bh;
      tile.batch = at / shape.H, tile.head = at % shape.H;
      tile.row_end = tile.queries = shape.M, tile.column_end = tile.keys = shape.N;
      tile.batches = shape.B, tile.heads = shape.H;
      most = std::max(most, bounds(index, tile, integers).high);
    }
    elements *= most + 1;
    if (!(elements <= kMostElements))
      fail("explain", "capture '" + read.node().name + "' given",
           "the index " + to_string(index) + ", which has no bounds");
    sizes.push_back(static_cast<int64_t>(most) + 1);
  }
  return sizes;
}

at::Tensor random_capture(const Expr& read, const ExplainShape& shape, at::ScalarType real) {
  const auto sizes = sizes_of(read, shape);
  if (read.type() == Type::boolean) return at::rand(sizes).lt(0.5);
  if (read.type() == Type::integer) return at::randint(0, shape.N, sizes, at::kLong);
  return at::randn(sizes, real == at::kDouble ? at::kDouble : at::kFloat);
}

/// Every read of a capture in the spec, positions among them.
std::vector<Expr> reads_of(const AttentionSpec& spec) {
  std::vector<Expr> roots = {spec.score, spec.keep, spec.weight, spec.counted}, reads;
  for (const auto& pair : spec.pair_outputs) {
    roots.push_back(pair.value);
    roots.push_back(pair.bucket);
  }
  for (const auto& entry : flatten(roots).entries)
    if (entry.expr.op() == Op::capture) reads.push_back(entry.expr);
  if (!spec.positions.query.tensor.empty()) reads.push_back(spec.positions.query.at(row()));
  if (!spec.positions.key.tensor.empty()) reads.push_back(spec.positions.key.at(column()));
  return reads;
}

at::Tensor capture_for(const std::string& name, const SpecFacts& facts, const ExplainShape& shape,
                       at::ScalarType real) {
  at::Tensor largest;
  for (const Expr& read : reads_of(*facts.spec)) {
    if (read.node().name != name) continue;
    const at::Tensor t = random_capture(read, shape, real);
    if (!largest.defined()) {
      largest = t;
      continue;
    }
    std::vector<int64_t> sizes = largest.sizes().vec();
    for (size_t d = 0; d < sizes.size(); ++d) sizes[d] = std::max(sizes[d], t.size(static_cast<int64_t>(d)));
    if (at::IntArrayRef(sizes) != largest.sizes())
      largest = read.type() == Type::real      ? at::randn(sizes, largest.options())
                : read.type() == Type::integer ? at::randint(0, shape.N, sizes, at::kLong)
                                               : at::rand(sizes).lt(0.5);
  }
  return largest;
}

}  // namespace

Call random_call(const std::string& spec_json, const ExplainShape& shape, at::ScalarType dtype,
                 const std::map<std::string, at::Tensor>& given) {
  const auto facts = facts_of(spec_json);
  for (const auto& [name, tensor] : given)
    if (std::find(facts->captures.begin(), facts->captures.end(), name) == facts->captures.end())
      fail("explain", "captures that the spec reads", "'" + name + "'");
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, at::kFloat).to(dtype); };
  const at::Tensor q = normal({shape.B, shape.H, shape.M, shape.Dh}),
                   k = normal({shape.B, shape.Hk, shape.N, shape.Dh});
  const at::Tensor v = normal({shape.B, shape.Hk, shape.N, shape.Dv});
  std::vector<at::Tensor> captures, operands;
  for (const auto& name : facts->captures) {
    const auto found = given.find(name);
    captures.push_back(found != given.end() ? found->second : capture_for(name, *facts, shape, dtype));
  }
  for (const auto& name : facts->operands) {
    int64_t width = shape.Dh;
    for (const auto& dot : facts->dots)
      if (dot.name == name) width = std::max(width, dot.end);
    operands.push_back(normal({shape.B, shape.H, shape.M, width}));
    operands.push_back(normal({shape.B, shape.H, shape.N, width}));
  }
  std::optional<at::Tensor> sinks, seed;
  if (facts->spec->normalizer.sinks) sinks = at::randn({shape.H}, dtype == at::kDouble ? at::kDouble : at::kFloat);
  if (facts->spec->dropout > 0) seed = at::zeros({}, at::kLong);
  return make_call("explain", q, k, v, spec_json, captures, operands, sinks, seed, 0);
}

}  // namespace ops
}  // namespace regard
