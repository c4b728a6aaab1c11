#include "regard/ops/tap_stripes.h"

#include <algorithm>
#include <limits>
#include <map>

#include "regard/base/error.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/formula.h"
#include "regard/ops/positions.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

c10::SymInt blocks_of(const c10::SymInt& length, int64_t size) { return (length + (size - 1)) / size; }

/// -sum w log w over positive weights.
at::Tensor entropy(const at::Tensor& w) {
  const at::Tensor positive = w.gt(0), zero = at::zeros({}, w.options());
  const at::Tensor log = at::log(at::where(positive, w, at::ones({}, w.options())));
  return at::neg(at::where(positive, w * log, zero).sum(-1));
}

at::Tensor effective_keys(const at::Tensor& w) {
  return at::where(w.gt(0).any(-1), at::exp(entropy(w)), at::zeros({}, w.options()));
}

at::Tensor largest(const at::Tensor& w) {
  return w.sym_size(-1) == 0 ? w.sum(-1) : w.amax(-1);  // a row of no keys has no maximum
}

/// Sums over blocks of rows (numbered in the whole map) and columns, (B, H, blocks of M, blocks of N).
at::Tensor block_sums(const Call& call, const Rows& rows, const at::Tensor& w, int64_t p, int64_t q) {
  const c10::SymInt down = blocks_of(call.M(), p), across = blocks_of(call.N(), q);
  const at::Tensor padded = at::constant_pad_nd_symint(w, {c10::SymInt(0), across * q - call.N()});
  const at::Tensor columns = padded.unflatten_symint(-1, {across, c10::SymInt(q)}).sum(-1);
  const at::Tensor block = rows.index(call.q.options().requires_grad(std::nullopt)).floor_divide(p);
  return at::zeros_symint({call.B(), call.H(), down, across}, w.options()).index_add(2, block, columns);
}

/// How many rows (columns) each block has, (blocks) of w's type.
at::Tensor block_lengths(const c10::SymInt& length, int64_t size, const at::TensorOptions& options) {
  const at::Tensor begin = at::arange(at::Scalar(blocks_of(length, size)), options) * size;
  return at::clamp_max(at::rsub(begin, at::Scalar(length)), size);
}

/// Sums by query() - key(), clamped to [-reach, reach], (B, H, 2 reach + 1).
at::Tensor offset_sums(const Call& call, const Rows& rows, const at::Tensor& w, int64_t reach) {
  const at::Tensor apart = query_positions(call, rows).unsqueeze(-1) - key_positions(call).unsqueeze(1);  // (1|B, m, N)
  const at::Tensor channel = (apart.clamp(-reach, reach) + reach).unsqueeze(1).expand_symint(w.sym_sizes());
  // Row by row first: adding all pairs one after another would lose digits.
  return at::zeros_symint({call.B(), call.H(), w.sym_size(2), c10::SymInt(2 * reach + 1)}, w.options())
      .scatter_add(-1, channel, w)
      .sum(2);
}

struct Top {
  at::Tensor weights;  ///< (B, H, m, K), falling; 0 where there are fewer keys
  at::Tensor index;    ///< double: indices travel with the real outputs of a stripe, and doubles hold them exactly
};

Top top_of(const at::Tensor& w, int64_t k) {
  const auto keys = w.sym_size(-1).maybe_as_int();
  const int64_t missing = keys ? std::max<int64_t>(0, k - *keys) : k;
  constexpr double nothing = -std::numeric_limits<double>::infinity();
  const auto [values, index] = at::topk(missing > 0 ? at::constant_pad_nd(w, {0, missing}, nothing) : w, k);
  const at::Tensor weights =
      missing > 0 ? at::where(values.eq(nothing), at::zeros({}, values.options()), values) : values;
  return {weights, at::where(weights.detach().ne(0), index, -1).to(at::kDouble)};
}

bool of_rows(TapKind kind) {
  switch (kind) {
    case TapKind::column_sums:
    case TapKind::column_square_sums:
    case TapKind::blocks:
    case TapKind::offsets:
      return false;
    default:
      return true;
  }
}

/// `tops`: by K, made once for the weights and their indices.
at::Tensor reduce(const TapName& tap, const Call& call, const Rows& rows, const at::Tensor& w,
                  std::map<int64_t, Top>& tops) {
  const bool top = tap.kind == TapKind::top_k || tap.kind == TapKind::top_k_index;
  if (top && !tops.count(tap.first)) tops[tap.first] = top_of(w, tap.first);
  switch (tap.kind) {
    case TapKind::entropy:
      return entropy(w);
    case TapKind::effective_keys:
      return effective_keys(w);
    case TapKind::max:
      return largest(w);
    case TapKind::sum_of_squares:
      return at::square(w).sum(-1);
    case TapKind::column_sums:
      return w.sum(2);
    case TapKind::column_square_sums:
      return at::square(w).sum(2);
    case TapKind::top_k:
      return tops[tap.first].weights;
    case TapKind::top_k_index:
      return tops[tap.first].index;
    case TapKind::blocks:
      return block_sums(call, rows, w, tap.first, tap.second);
    case TapKind::offsets:
      return offset_sums(call, rows, w, tap.first);
    default:
      fail("tap", "a reduction of rows", "'" + tap.text + "'");
  }
}

at::Tensor finish(const TapName& tap, const Call& call, const at::Tensor& whole) {
  if (tap.kind == TapKind::top_k_index) return whole.to(at::kLong);
  if (tap.kind != TapKind::blocks) return whole;
  const auto options = whole.options().requires_grad(std::nullopt);
  return whole /
         (block_lengths(call.M(), tap.first, options).unsqueeze(1) * block_lengths(call.N(), tap.second, options));
}

void check(const TapName& tap, const Call& call) {
  using Kind = Normalizer::Kind;
  const Kind kind = call.spec->normalizer.kind;
  const bool is_signed = kind == Kind::signed_softmax || kind == Kind::identity || kind == Kind::z_score;
  if ((tap.kind == TapKind::entropy || tap.kind == TapKind::effective_keys) && is_signed)
    fail("tap", "weights that are not negative with '" + tap.text + "'", std::string("normalizer ") + name_of(kind));
}

}  // namespace

std::vector<at::Tensor> measure_in_stripes(const Call& call, bool at_once, const std::vector<TapName>& taps,
                                           const std::vector<WeightEdit>& edits) {
  if (taps.empty()) return {};
  std::vector<Combine> combine;
  for (const auto& tap : taps) {
    check(tap, call);
    combine.push_back(of_rows(tap.kind) ? Combine::concatenate(2) : Combine::sum());
  }
  std::vector<at::Tensor> inputs = tensors_of(call);
  const auto own_tensors = static_cast<std::ptrdiff_t>(inputs.size());
  const std::vector<at::Tensor> more = tensors_of(edits);
  inputs.insert(inputs.end(), more.begin(), more.end());
  const StripeFunction stripe = [=](const Rows& rows, const std::vector<at::Tensor>& in) {
    const Call own = with_tensors(call, {in.begin(), in.begin() + own_tensors});
    const at::Tensor weights = edited(attention_weights(own, rows), rows, edits, {in.begin() + own_tensors, in.end()});
    std::vector<at::Tensor> out;
    std::map<int64_t, Top> tops;
    for (const auto& tap : taps) out.push_back(reduce(tap, own, rows, weights, tops));
    return out;
  };
  const auto whole = run_stripes(call.M(), at_once ? 0 : stripe_rows(call), inputs, stripe, combine);
  if (!traced(call.q)) count_path("attention_taps", at_once ? Path::composite : Path::stripe);
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < taps.size(); ++i) out.push_back(finish(taps[i], call, whole[i]));
  return out;
}

}  // namespace regard::ops
