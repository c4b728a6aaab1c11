#include "regard/kernels/cpu/block_list.h"

#include "regard/kernels/cpu/rounding.h"

namespace regard::kernels {
namespace {

/// x // divisor of an index x, or the index itself.
struct Quotient {
  Op of = Op::constant;
  int64_t divisor = 1;
};

std::optional<Quotient> quotient_of(const Expr& index) {
  const Node& node = index.node();
  if (node.op == Op::constant) return node.number == 0 ? std::optional(Quotient{}) : std::nullopt;
  if (node.op != Op::floor_div) return Quotient{node.op, 1};
  const Node& divisor = node.args[1].node();
  if (divisor.op != Op::constant || divisor.number < 1) return std::nullopt;
  return Quotient{node.args[0].op(), static_cast<int64_t>(divisor.number)};
}

/// The other side of `a op b` whose one side reads blocks, and which side that is.
struct Sides {
  Expr blocks, rest;
};
template <class Reads>
std::optional<Sides> split(const Expr& expr, Op op, const Reads& reads) {
  if (expr.op() != op) return std::nullopt;
  const auto& args = expr.node().args;
  if (reads(args[0])) return Sides{args[0], args[1]};
  if (reads(args[1])) return Sides{args[1], args[0]};
  return std::nullopt;
}

const Expr& every_pair() {
  static const Expr always(true);  // one node, so that the cache of programs finds it again
  return always;
}

}  // namespace

struct BlockList::Form {
  Expr expr;
  int64_t query_block = 1, key_block = 1, group = 1;
  bool by_batch = false, by_head = false;
};

std::optional<BlockList::Form> BlockList::form_of(const Expr& expr, const PairSpace& space) {
  const Node& node = expr.node();
  if (node.op != Op::capture || node.type != Type::boolean || node.args.size() != 4) return std::nullopt;
  std::optional<Quotient> index[4];
  for (size_t i = 0; i < 4; ++i) {
    index[i] = quotient_of(node.args[i]);
    if (!index[i]) return std::nullopt;
  }
  const bool any_batch = index[0]->of == Op::constant, any_head = index[1]->of == Op::constant;
  const bool rows = index[2]->of == Op::row || (index[2]->of == Op::query && space.query_offset == 0);
  const bool columns = index[3]->of == Op::column || index[3]->of == Op::key;
  if (!(any_batch || (index[0]->of == Op::batch && index[0]->divisor == 1))) return std::nullopt;
  if (!(any_head || index[1]->of == Op::head) || !rows || !columns) return std::nullopt;
  if (index[2]->divisor < kLeastBlock || index[3]->divisor < kLeastBlock) return std::nullopt;
  return Form{expr, index[2]->divisor, index[3]->divisor, index[1]->divisor, !any_batch, !any_head};
}

std::optional<BlockList::Bits> BlockList::bits_of(const Form& form, const PairSpace& space,
                                                  const std::vector<Capture>& captures) {
  const Capture& capture = find_capture(captures, form.expr.node().name);
  if (capture.element != Element::boolean || capture.sizes.size() != 4) return std::nullopt;
  const int64_t least[4] = {form.by_batch ? space.batches : 1, form.by_head ? ceil_div(space.heads, form.group) : 1,
                            ceil_div(space.queries, form.query_block), ceil_div(space.keys, form.key_block)};
  for (size_t i = 0; i < 4; ++i)
    if (capture.sizes[i] < least[i]) return std::nullopt;  // the reads themselves say what is wrong
  return Bits{static_cast<const uint8_t*>(capture.data),
              form.by_batch ? capture.strides[0] : 0,
              form.by_head ? capture.strides[1] : 0,
              capture.strides[2],
              capture.strides[3],
              form.group};
}

std::optional<BlockList> BlockList::take(PairExpressions& pairs, const PairSpace& space,
                                         const std::vector<Capture>& captures) {
  const auto reads = [&](const Expr& expr) { return form_of(expr, space).has_value(); };
  const auto taken = [&](const Expr& expr) -> std::optional<Sides> {
    return reads(expr) ? std::optional(Sides{expr, every_pair()}) : split(expr, Op::logical_and, reads);
  };
  const auto keep = taken(pairs.keep);
  if (!keep) return std::nullopt;
  const bool apart = pairs.counted.pointer() != pairs.keep.pointer();
  std::optional<Sides> counted = keep;
  if (apart) counted = taken(pairs.counted);
  if (!counted || !same(counted->blocks, keep->blocks)) return std::nullopt;

  const Form form = *form_of(keep->blocks, space);
  const auto kept = bits_of(form, space, captures);
  if (!kept) return std::nullopt;
  BlockList list;
  list.kept_ = *kept;
  list.query_block_ = form.query_block;
  list.key_block_ = form.key_block;
  Expr rest = keep->rest;
  const auto as_kept = [&](const Expr& expr) {
    const auto other = form_of(expr, space);
    return other && other->query_block == form.query_block && other->key_block == form.key_block;
  };
  // In a full block the counted pairs are those of `counted` still: then the program has to tell them apart.
  if (const auto either = apart ? std::nullopt : split(rest, Op::logical_or, as_kept)) {
    if (const auto full = bits_of(*form_of(either->blocks, space), space, captures)) {
      list.full_ = *full;
      rest = either->rest;
    }
  }
  pairs.keep = rest;
  pairs.counted = apart ? counted->rest : rest;
  if (apart && same(pairs.counted, pairs.keep)) pairs.counted = pairs.keep;
  return list;
}

}  // namespace regard::kernels
