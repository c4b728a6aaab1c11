#include "regard/nn/dense/multi_token_scores.h"

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/correlation.h"
#include "regard/ops/counter_random.h"

namespace regard {
namespace {

constexpr const char* id = "multi-token-attention";

bool known_zero(const c10::SymInt& value) {
  const auto known = value.maybe_as_int();
  return known && *known == 0;
}

at::Tensor range(const c10::SymInt& begin, const c10::SymInt& end, const at::Tensor& like,
                 at::ScalarType type = at::kLong) {
  return at::arange(at::Scalar(begin), at::Scalar(end), like.options().dtype(type).requires_grad(std::nullopt));
}

at::Tensor either(const at::Tensor& a, const at::Tensor& b) { return a.defined() ? at::logical_or(a, b) : b; }
/// A mask that is the same for all rows keeps its single one.
at::Tensor from_row(const at::Tensor& pairs, int64_t row) {
  return pairs.defined() && pairs.sym_size(2) != 1 ? pairs.slice(2, row) : pairs;
}
at::Tensor without(const at::Tensor& map, const at::Tensor& pairs, double fill) {
  return pairs.defined() ? map.masked_fill(pairs, fill) : map;
}

/// The same in a tensor that nothing else reads; transforms see the other form.
at::Tensor emptied(at::Tensor map, const at::Tensor& pairs, double fill) {
  if (!pairs.defined()) return map;
  const bool plain = ops::concrete(map) && ops::concrete(pairs) && !map._fw_grad(0).defined();
  return plain ? map.masked_fill_(pairs, fill) : map.masked_fill(pairs, fill);
}

/// sum_d matrix[e, d] map_d within groups of heads: matrix (G, c, c), map (B, G c, m, n).
at::Tensor mixed(const at::Tensor& matrix, const at::Tensor& map) {
  const at::Tensor grouped = map.unflatten(1, {matrix.size(0), matrix.size(1)}).flatten(3);  // (B, G, c, m n)
  const at::Tensor flat = at::matmul(matrix.unsqueeze(0), grouped);
  return at::_unsafe_view_symint(flat, map.sym_sizes());  // as matmul's own result: nothing else reads `flat`
}

/// The softmax over the pairs that exist; what a finite minimum stands for underflows to exactly 0.
at::Tensor normalized(const at::Tensor& map, const at::Tensor& pairs, bool owned) {
  const double least =
      map.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest() : std::numeric_limits<float>::lowest();
  return at::softmax(owned ? emptied(map, pairs, least) : without(map, pairs, least), -1);
}

}  // namespace

MultiTokenScores::MultiTokenScores(const MultiTokenAttention::Config& config, const Weights& weights)
    : config_(config) {
  if (config.query_kernel_size) kernel_ = weights["mta_kernel"];
  if (config.after_sm_query_kernel_size) kernel_after_ = weights["mta_kernel_after_sm"];
  if (config.pre_sm_linear_head) mixer_ = weights["wpsm.weight"];
  if (config.head_kernel_size) head_kernel_ = weights["head_kernel"];
  if (config.post_sm_linear_head) mixer_after_ = weights["wposm.weight"];
}

void MultiTokenScores::check_hidden(const at::Tensor& q, const at::Tensor& k, bool decoding) const {
  if (!hidden.defined()) return;
  require(!decoding, id, "a cache or the input hidden", "both");
  const std::vector<c10::SymInt> full = {q.sym_size(0), q.sym_size(1), q.sym_size(2), k.sym_size(2)};
  bool fits = hidden.scalar_type() == at::kBool && hidden.dim() >= 2 && hidden.dim() <= 4;
  for (int64_t d = 1; fits && d <= hidden.dim(); ++d)
    fits = hidden.sym_size(-d) == 1 || hidden.sym_size(-d) == full[static_cast<size_t>(4 - d)];
  if (!fits) fail(id, "hidden, bool that broadcasts to (B, H, M, N) = " + describe(full), describe(hidden));
}

void MultiTokenScores::add(const Edit& edit) {
  if (edit.attention > 0) return;
  require(!edit.before, id, "an edit of the weights (no spec states a filter over scores)", "an edit of the spec");
  if (edit.after.change) edits_.push_back(edit.after);
  if (edit.reached) ++*edit.reached;
}

std::vector<at::Tensor> MultiTokenScores::tensors() const {
  std::vector<at::Tensor> all = {kernel_, mixer_, kernel_after_, head_kernel_, mixer_after_};
  for (const auto& edit : edits_) all.insert(all.end(), edit.tensors.begin(), edit.tensors.end());
  return all;
}

ops::WeightFunction MultiTokenScores::function() const {
  return [self = *this](const ops::StripeScores& stripe, const std::vector<at::Tensor>& extra) {
    return std::vector<at::Tensor>{self.weights(stripe, extra)};
  };
}

/// True where a pair does not exist: (1 or B, 1 or H, m + halo, n), undefined when all do. Rows before the first count.
at::Tensor MultiTokenScores::hidden_pairs(const ops::StripeScores& stripe, const c10::SymInt& missing) const {
  const c10::SymInt before = config_.halo_before() + config_.halo_after(), columns = stripe.scores.sym_size(3);
  // int32 compares twice as fast, and these are compared for every pair.
  const at::Tensor row = range(stripe.rows.begin - before, stripe.rows.end, stripe.scores, at::kInt).unsqueeze(1);
  const at::Tensor column = range(0, columns, stripe.scores, at::kInt), existing = row.clamp_min(0);
  at::Tensor pairs;
  if (!known_zero(missing)) pairs = (row < 0).view({1, 1, -1, 1});
  if (config_.causal) pairs = either(pairs, (column > row + at::Scalar(offset)).unsqueeze(0).unsqueeze(0));
  if (segments.defined()) {
    const at::Tensor own = segments.index_select(0, existing.squeeze(1));
    pairs = either(pairs, (own.unsqueeze(1) != segments.slice_symint(0, 0, columns)).unsqueeze(0).unsqueeze(0));
  }
  // Padding lies behind the tokens, where no causal query looks.
  if (key_lengths.defined() && !config_.causal)
    pairs = either(pairs, (column >= key_lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1));
  if (hidden.defined()) {
    at::Tensor own = hidden;
    while (own.dim() < 4) own = own.unsqueeze(0);
    if (own.sym_size(2) != 1) own = own.index_select(2, existing.squeeze(1));
    if (own.sym_size(3) != 1) own = own.slice_symint(3, 0, columns);
    pairs = either(pairs, own);
  }
  return pairs;
}

/// The rows of `map` end with the stripe's last; the first height - 1 of them are dropped.
at::Tensor MultiTokenScores::filtered(const at::Tensor& map, const at::Tensor& kernel,
                                      const ops::StripeScores& stripe) const {
  const int64_t reach = kernel.size(3) - 1, height = kernel.size(2);
  kernels::Pads pads;
  pads.left = config_.pad_key == "both" ? reach / 2 : config_.pad_key == "left" ? reach : 0;
  pads.right = reach - pads.left;
  const at::Tensor own = kernel.squeeze(1).to(map.scalar_type());
  if (!segments.defined()) return ops::correlate(map, own, pads);
  // From one segment's pairs a kernel reaches, diagonally, another's: each row takes rows of its own segment alone.
  const c10::SymInt rows = map.sym_size(2) - (height - 1);
  const at::Tensor row = range(stripe.rows.end - map.sym_size(2), stripe.rows.end, map).clamp_min(0);
  const at::Tensor segment = segments.index_select(0, row);
  at::Tensor sum;
  for (int64_t a = 0; a < height; ++a) {
    const at::Tensor other = segment.slice_symint(0, a, rows + a) != segment.slice(0, height - 1);
    const at::Tensor part = ops::correlate(map.slice_symint(2, a, rows + a), own.slice(1, a, a + 1), pads)
                                .masked_fill(other.view({1, 1, -1, 1}), 0);
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

at::Tensor MultiTokenScores::dropped(const at::Tensor& map, const ops::StripeScores& stripe) const {
  const auto at_dim = [&](const at::Tensor& index, int64_t dim) {
    std::vector<int64_t> shape(4, 1);
    shape[static_cast<size_t>(dim)] = -1;
    return index.view(shape);
  };
  const at::Tensor query = range(stripe.rows.begin + offset, stripe.rows.end + offset, map);
  const at::Tensor kept =
      ops::random_event(1 - config_.attn_drop, seed.to(map.device()),
                        {at_dim(range(0, map.sym_size(0), map), 0), at_dim(range(0, map.sym_size(1), map), 1),
                         at_dim(query, 2), at_dim(range(0, map.sym_size(3), map), 3)});
  return map * kept.to(map.scalar_type()) * (1 / (1 - config_.attn_drop));
}

at::Tensor MultiTokenScores::weights(const ops::StripeScores& stripe, const std::vector<at::Tensor>& extra) const {
  const at::Tensor &kernel = extra[0], &mixer = extra[1], &after = extra[2], &heads = extra[3], &mixer_after = extra[4];
  // Rows before the first exist for nobody: 0 in the scores, no weights.
  const c10::SymInt missing = c10::SymInt(config_.halo_before() + config_.halo_after()) - stripe.first;
  at::Tensor map = stripe.scores;
  if (!known_zero(missing)) map = at::constant_pad_nd_symint(map, std::vector<c10::SymInt>{0, 0, missing, 0});
  at::Tensor pairs = hidden_pairs(stripe, missing);
  const auto own = [&](const at::Tensor& matrix) { return matrix.to(map.scalar_type()); };

  if (kernel.defined()) map = filtered(emptied(map, pairs, 0), kernel, stripe);
  pairs = from_row(pairs, config_.halo_before());
  if (mixer.defined()) map = mixed(own(mixer).unsqueeze(0), map);
  map = normalized(map, pairs, /*owned=*/true);
  // A row that sees something has exact zeros at hidden pairs already; one that sees nothing has not.
  const bool maybe_empty = !known_zero(missing) || key_lengths.defined() || hidden.defined();
  if (maybe_empty) map = without(map, pairs, 0);
  if (config_.parity && !config_.mixes_after()) map = without(normalized(map, pairs, /*owned=*/false), pairs, 0);
  if (after.defined()) {
    map = filtered(map, after, stripe);
    map = emptied(map, from_row(pairs, config_.halo_after()), 0);
  }
  if (heads.defined()) map = mixed(own(heads).transpose(1, 2), map);
  if (mixer_after.defined()) map = mixed(own(mixer_after).unsqueeze(0), map);
  if (seed.defined()) map = dropped(map, stripe);
  auto read = extra.begin() + 5;
  for (const auto& edit : edits_) {
    const std::vector<at::Tensor> tensors(read, read + static_cast<std::ptrdiff_t>(edit.tensors.size()));
    read += static_cast<std::ptrdiff_t>(edit.tensors.size());
    map = edit.change(map, {stripe.rows.begin - skipped, stripe.rows.end - skipped, {}}, tensors);
  }
  return map;
}

}  // namespace regard
