#include "regard/nn/dense/sides.h"

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

at::Tensor memory_of(const char* id, const at::Tensor& x, int64_t width, const Context& context) {
  const at::Tensor memory = context.input("memory");
  const std::string wanted = "memory (B, N, " + std::to_string(width) + ")";
  if (!memory.defined()) {
    if (x.sym_size(2) != width) fail(id, "input " + wanted + ", since memory_width is not width", "none");
    require(!context.input("memory_lengths").defined(), id, "memory with memory_lengths", "memory_lengths alone");
    return memory;
  }
  if (memory.dim() != 3 || memory.sym_size(2) != width || memory.sym_size(0) != x.sym_size(0))
    fail(id, wanted + " with the batch of x " + describe(x), describe(memory));
  return memory;
}

/// i + (keys of row b) - (queries of row b), (B, M): the last query of each row on its last key.
at::Tensor bottom_right_positions(const Sides& sides, const Context& context) {
  const auto integers = sides.x.options().dtype(at::kLong).requires_grad(std::nullopt);
  const auto own = [&](const at::Tensor& lengths, const at::Tensor& tokens) {
    return lengths.defined() ? lengths.to(at::kLong).unsqueeze(1)
                             : at::scalar_tensor(at::Scalar(context.tokens(tokens)), integers).view({1, 1});
  };
  return context.indices(sides.x).unsqueeze(0) + own(sides.key_lengths, sides.source) - own(sides.lengths, sides.x);
}

at::Tensor checked_positions(const char* id, const char* name, const at::Tensor& given, const at::Tensor& tokens) {
  const bool rank = given.dim() == 1 || (given.dim() == 2 && given.sym_size(0) == tokens.sym_size(0));
  if (!rank || given.sym_size(-1) != tokens.sym_size(1))
    fail(id, std::string(name) + " (L) or (B, L), L = " + describe(tokens.sym_size(1)), describe(given));
  return given;
}

/// The element of `tensor` that belongs to a pair: broadcast against (B, H, M, N) as torch does, but read by indices,
/// so that its expansion is never stored.
Expr pair_capture(const char* id, const std::string& name, Type type, const at::Tensor& tensor, const at::Tensor& q,
                  const at::Tensor& k, AttentionArguments& arguments) {
  const c10::SymInt full[] = {q.sym_size(0), q.sym_size(1), q.sym_size(2), k.sym_size(2)};
  const Expr local[] = {batch(), head(), row(), column()};
  const int64_t skipped = 4 - tensor.dim();
  std::vector<Expr> indices;
  bool fits = skipped >= 0;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    const c10::SymInt size = tensor.sym_size(d);
    fits = size == full[skipped + d] || size == 1;
    // One token here may be one of many on all shards: an entry of its own, not a broadcast one.
    const bool broadcast = size == 1 && !(skipped + d >= 2 && size == full[skipped + d]);
    indices.push_back(broadcast ? Expr(0) : local[skipped + d]);
  }
  if (!fits)
    fail(id, name + " to broadcast to (B, H, M, N) = " + describe(c10::SymIntArrayRef(full)), describe(tensor));
  arguments.named_captures[name] = tensor;
  return capture(name, type, std::move(indices));
}

void hide(AttentionSpec& spec, const Expr& keep) { spec.keep = spec.keep.defined() ? spec.keep & keep : keep; }

}  // namespace

std::vector<Port> side_ports() {
  return {{"memory", "(B, N, Dm): the tokens that keys and values are made of (cross-attention); default x"},
          {"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
          {"memory_lengths", "(B) int64: tokens of each row of memory"},
          {"key_hidden", "(B, N) bool: true = NOT attended by any query"},
          {"hidden", "bool, broadcast to (B, H, M, N), e.g. (M, N): true = NOT attended"}};
}

Sides sides_of(const char* id, const at::Tensor& x, int64_t memory_width, const Context& context) {
  const at::Tensor memory = memory_of(id, x, memory_width, context);
  Sides sides;
  sides.cross = memory.defined();
  sides.lengths = context.input("lengths");
  if (sides.lengths.defined()) sides.padded = context.padding(x);
  sides.x = zeroed(x, sides.padded);
  sides.key_lengths = sides.cross ? context.input("memory_lengths") : sides.lengths;
  sides.source = sides.cross ? memory : sides.x;
  if (sides.cross) sides.source = zeroed(memory, context.padding(memory, sides.key_lengths));
  sides.key_hidden = context.input("key_hidden");
  if (!sides.key_hidden.defined()) return sides;
  const at::Tensor& hidden = sides.key_hidden;
  if (hidden.dim() != 2 || hidden.scalar_type() != at::kBool || hidden.sym_size(0) != x.sym_size(0) ||
      hidden.sym_size(1) != sides.source.sym_size(1))
    fail(id, "key_hidden (B, N) bool (true = not attended) for keys of " + describe(sides.source), describe(hidden));
  require(!context.decoding(), id, "a cache or key_hidden (a step knows only its own keys; use hidden)", "both");
  sides.source = zeroed(sides.source, hidden);
  return sides;
}

void require_alignment(const char* id, const std::string& alignment) {
  if (alignment != "bottom_right" && alignment != "top_left")
    fail(id, "alignment 'bottom_right' or 'top_left'", "'" + alignment + "'");
}

void add_visibility(const char* id, const Sides& sides, const Order& order, const at::Tensor& q, const at::Tensor& k,
                    const Context& context, AttentionSpec& spec, AttentionArguments& arguments) {
  if (order.causal) hide(spec, masks::causal());
  if (sides.key_lengths.defined()) {
    arguments.named_captures["lengths"] = sides.key_lengths;
    hide(spec, key() < capture("lengths", Type::integer, {batch()}));
  }
  if (sides.key_hidden.defined()) {
    arguments.named_captures["key_hidden"] = sides.key_hidden;
    hide(spec, ~capture("key_hidden", Type::boolean, {batch(), column()}));
  }
  const at::Tensor hidden = context.input("hidden");
  if (hidden.defined()) {
    if (hidden.scalar_type() != at::kBool) fail(id, "hidden of type bool (true = not attended)", describe(hidden));
    hide(spec, ~pair_capture(id, "hidden", Type::boolean, hidden, q, k, arguments));
  }
  if (!sides.cross || !order.causal || !order.bottom_right) return;
  if (!sides.lengths.defined() && !sides.key_lengths.defined()) {
    arguments.query_offset = context.tokens(sides.source) - context.tokens(sides.x);
    return;
  }
  arguments.named_captures["query_positions"] =
      bottom_right_positions(sides, context).expand_symint({q.sym_size(0), q.sym_size(2)});
  spec.positions.query.tensor = "query_positions";
}

at::Tensor query_positions(const char* id, const Sides& sides, const Order& order, const Context& context) {
  const at::Tensor given = context.input("positions");
  if (given.defined()) return checked_positions(id, "positions", given, sides.x);
  if (!sides.cross) return context.positions(sides.x);
  if (!order.causal || !order.bottom_right) return context.indices(sides.x);
  const at::Tensor positions = bottom_right_positions(sides, context);
  return sides.lengths.defined() || sides.key_lengths.defined() ? positions : positions.squeeze(0);
}

at::Tensor key_positions(const char* id, const Sides& sides, const Context& context) {
  if (!sides.cross) return query_positions(id, sides, {}, context);
  const at::Tensor given = context.input("memory_positions");
  return given.defined() ? checked_positions(id, "memory_positions", given, sides.source)
                         : context.indices(sides.source);
}

void add_dropout(double p, Context& context, AttentionSpec& spec, AttentionArguments& arguments) {
  if (p == 0 || !context.training) return;
  spec.dropout = p;
  arguments.seed = context.stream("attention");
}

at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where) {
  return where.defined() ? tokens.masked_fill(where.unsqueeze(2), 0) : tokens;
}

}  // namespace regard
