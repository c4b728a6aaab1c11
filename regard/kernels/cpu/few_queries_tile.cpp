#include "regard/kernels/cpu/few_queries_tile.h"

#include <algorithm>
#include <numbers>

#include "regard/kernels/cpu/checks.h"

namespace regard::kernels {
namespace {

/// Bytes fetched ahead of a row, and the least and most rows that makes. Measured with D 128: 4 to 32 rows of 512
/// bytes are alike, none costs a third more; with D 768 and 4 queries, 8 rows of 3 KiB are 5% ahead of 4. More than
/// half of the first cache level would push itself out.
constexpr int64_t kAheadBytes = 8192, kLeastAhead = 8, kMostAhead = 32;

template <class T, class S>
const Attention<T, S>& checked(const Attention<T, S>& call) {
  check_call(sizes_of(call));
  return call;
}

bool default_score(const PairExpressions& pairs) {
  static const Expr score = expressions_of(AttentionSpec{}).score;
  return pairs.score.pointer() == score.pointer() || same(pairs.score, score);
}

}  // namespace

template <class T, class S>
FewPlan<T, S>::FewPlan(const Attention<T, S>& attention, bool backward)
    : call(checked(attention)),
      pairs(expressions_of(*call.spec)),
      space{call.B, call.H, call.M, call.N, call.query_offset, call.scale},
      plain(!pairs.weight.defined() && default_score(pairs)),
      group(call.H / call.Hk),
      rows(group * call.M),
      chunks(pairs, space, call.captures, call.Hk) {
  if (!plain || pairs.masked()) {
    programs = cached_programs(pairs, Side::keys, backward, {});
    open = bind_reads(programs->open, call.captures, space);
    masked = bind_reads(programs->masked, call.captures, space);
  }
  if (plain) {
    dots.push_back({0, call.Dh});
  } else {
    for (const Expr& dot : programs->dots) {
      const Node& node = dot.node();
      check_dot(node, call.Dh, call.H, call.H);
      dots.push_back({node.begin, (node.end < 0 ? call.Dh : node.end) - node.begin});
    }
  }
  factor = plain ? static_cast<T>(call.scale * std::numbers::log2e) : T(1);
  unit = plain ? T(1) : std::numbers::log2e_v<T>;
}

template <class T, class S>
void pack_rows(const FewPlan<T, S>& plan, const Array4<const S>& array, int64_t batch, int64_t key_head, FewDot columns,
               T factor, T* to) {
  const int64_t M = plan.call.M, width = columns.width, stride = padded_width(width);
  for (int64_t r = 0; r < plan.rows; ++r, to += stride) {
    const S* from = array.data + batch * array.batch + (key_head * plan.group + r / M) * array.head +
                    r % M * array.row + columns.begin * array.column;
    for (int64_t d = 0; d < width; ++d) to[d] = element<T>(from[d * array.column]) * factor;
    std::fill(to + width, to + stride, T(0));
  }
}

template <class T, class S>
FewTile<T, S>::FewTile(const FewPlan<T, S>& plan, Arena& arena) : plan_(plan) {
  const auto& call = plan.call;
  if (call.k.column != 1) key_copy_ = arena.take<T>(kLanes * padded_width(call.Dh));
  if (call.v.column != 1) value_copy_ = arena.take<T>(kLanes * padded_width(call.Dv));
  for (const FewDot& dot : plan.dots) {
    queries_.push_back(arena.take<T>(plan.rows * padded_width(dot.width)));
    scores_.push_back(arena.take<T>(plan.rows * kLanes));
  }
  head_scores_.resize(plan.dots.size());
  if (plan.programs == nullptr) return;
  for (int64_t g = 0; g < plan.group; ++g) {
    if (!plan.plain) {
      open_.push_back(std::make_unique<TileEvaluator<T>>(plan.programs->open, plan.open, plan.space, arena));
    }
    if (plan.pairs.masked()) {
      masked_.push_back(std::make_unique<TileEvaluator<T>>(plan.programs->masked, plan.masked, plan.space, arena));
    }
  }
}

template <class T, class S>
void FewTile<T, S>::begin(int64_t batch, int64_t key_head) {
  batch_ = batch;
  key_head_ = key_head;
  for (size_t d = 0; d < queries_.size(); ++d) {
    pack_rows(plan_, plan_.call.q, batch, key_head, plan_.dots[d], plan_.factor, queries_[d]);
  }
  steps_begun_.assign(open_.size() + masked_.size(), 0);
}

/// Rows [first, first + count) of the key head's array, of one page where it has pages; copied to T when its columns do
/// not lie together.
template <class T, class S>
FewArray FewTile<T, S>::array_of(const Array4<const S>& array, int64_t first, int64_t count, int64_t width,
                                 T* copy) const {
  const PageTable& pages = plan_.call.pages;
  const int64_t page = pages.size > 0 ? pages.table[batch_ * pages.entries + first / pages.size] : batch_;
  const int64_t row = pages.size > 0 ? first % pages.size : first;
  const S* data = array.data + page * array.batch + key_head_ * array.head + row * array.row;
  if (copy == nullptr) return {data, array.row, storage_of<S>};
  const int64_t stride = padded_width(width);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t d = 0; d < width; ++d) copy[j * stride + d] = element<T>(data[j * array.row + d * array.column]);
  }
  return {copy, stride, Storage::same};
}

template <class T, class S>
FewAhead FewTile<T, S>::ahead(const FewArray& next, int64_t width) const {
  const int64_t bytes = std::max<int64_t>(1, width * static_cast<int64_t>(sizeof(S)));
  return {std::clamp(kAheadBytes / bytes, kLeastAhead, kMostAhead), next};
}

template <class T, class S>
void FewTile<T, S>::enter(const KeyBlock& block, const KeyBlock* next) {
  const auto& call = plan_.call;
  block_ = block;
  cut_into_pieces();
  next_keys_ = {};
  if (next != nullptr && key_copy_ == nullptr)
    next_keys_ = array_of(call.k, next->first, next->count, call.Dh, nullptr);
  multiply();
  for (int64_t r = 0; r < plan_.rows; ++r) {
    view_[r] = {};
    if (plan_.plain) view_[r].score = scores_[0] + r * kLanes;
  }
  if (runs_program()) run_programs();
}

template <class T, class S>
void FewTile<T, S>::cut_into_pieces() {
  const auto& call = plan_.call;
  const int64_t size = call.pages.size;
  pieces_.clear();
  for (int64_t at = 0, count; at < block_.count; at += count) {
    const int64_t key = block_.first + at;
    count = size > 0 ? std::min(size - key % size, block_.count - at) : block_.count;
    const auto copy = [at](T* to, int64_t width) { return to == nullptr ? nullptr : to + at * padded_width(width); };
    pieces_.push_back({at, count, array_of(call.k, key, count, call.Dh, copy(key_copy_, call.Dh)),
                       array_of(call.v, key, count, call.Dv, copy(value_copy_, call.Dv))});
  }
}

template <class T, class S>
void FewTile<T, S>::multiply() {
  for (size_t n = 0; n < pieces_.size(); ++n) {
    const FewPiece& piece = pieces_[n];
    for (size_t d = 0; d < scores_.size(); ++d) {
      FewScores<T> x;
      x.rows = queries_[d];
      x.row_stride = padded_width(plan_.dots[d].width);
      x.row_count = plan_.rows;
      x.keys = part_of<T, S>(piece.keys, 0, plan_.dots[d].begin);
      x.ahead = after_keys(n);
      x.count = piece.count;
      x.width = plan_.dots[d].width;
      x.scores = scores_[d] + piece.first;
      few_primitives<T>().scores[static_cast<int>(piece.keys.storage)](x);
    }
  }
}

template <class T, class S>
void FewTile<T, S>::run_programs() {
  const int64_t M = plan_.call.M;
  auto& evaluators = block_.masked ? masked_ : open_;
  for (int64_t g = 0; g < plan_.group; ++g) {
    TileEvaluator<T>& program = *evaluators[static_cast<size_t>(g)];
    program.begin_lanes(batch_, key_head_ * plan_.group + g, block_.first, block_.count);
    char& begun = steps_begun_[static_cast<size_t>(g) + (block_.masked ? open_.size() : 0)];
    if (begun == 0) program.begin_steps(0, M);
    begun = 1;
    for (size_t d = 0; d < scores_.size(); ++d) head_scores_[d] = scores_[d] + g * M * kLanes;
    program.run(0, M, head_scores_.data());
    const Program& code = program.program();
    const View<T> score = program.reals(code.score), weight = program.reals(code.weight);
    const View<int32_t> keep = program.integers(code.keep), counted = program.integers(code.counted);
    for (int64_t i = 0; i < M; ++i) {
      FewRow<T>& row = view_[g * M + i];
      if (!plan_.plain) row.score = score.data + i * score.step;
      if (weight) row.weight = weight.data + i * weight.step;
      if (keep) row.keep = keep.data + i * keep.step;
      if (counted) row.counted = counted.data + i * counted.step;
    }
  }
}

template <class T, class S>
const T* FewTile<T, S>::slope(size_t dot, int64_t r, bool score) const {
  const int64_t M = plan_.call.M;
  const TileEvaluator<T>& program = *(block_.masked ? masked_ : open_)[static_cast<size_t>(r / M)];
  const Derivative& derivative = program.program().derivatives[dot];
  const View<T> view = program.reals(score ? derivative.score : derivative.weight);
  return view ? view.data + r % M * view.step : nullptr;
}

#define REGARD_INSTANTIATE(T, S) \
  template struct FewPlan<T, S>; \
  template class FewTile<T, S>;  \
  template void pack_rows(const FewPlan<T, S>&, const Array4<const S>&, int64_t, int64_t, FewDot, T, T*);
REGARD_INSTANTIATE(float, float)
REGARD_INSTANTIATE(float, bfloat16)
REGARD_INSTANTIATE(float, float16)
REGARD_INSTANTIATE(double, double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
