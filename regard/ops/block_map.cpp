#include "regard/ops/block_map.h"

#include "regard/kernels/cpu/block_list.h"
#include "regard/ops/blocked.h"
#include "regard/ops/paths.h"

namespace regard::ops {
namespace {

c10::SymInt blocks_in(const c10::SymInt& length, int64_t size) { return (length + (size - 1)) / size; }

/// Entries as places along a dimension of `count`; -1, none, is the place behind the last.
at::Tensor places(const at::Tensor& entries, const c10::SymInt& count) {
  return at::where(entries.lt(0), at::scalar_tensor(at::Scalar(count), entries.options()), entries);
}

/// (B or 1, Hi, Mb, Nb) bool: `values` (like index.blocks, or undefined for true) at the blocks that the index lists.
at::Tensor map_of(const BlockIndex& index, const at::Tensor& values, const c10::SymInt& rows,
                  const c10::SymInt& columns) {
  const at::Tensor& blocks = index.blocks;
  const auto options = blocks.options().dtype(at::kBool);
  const auto B = blocks.sym_size(0), H = blocks.sym_size(1), Q = blocks.sym_size(2);
  const at::Tensor own = values.defined() ? values : at::ones_symint(blocks.sym_sizes(), options);
  const at::Tensor map = at::zeros_symint({B, H, Q, columns + 1}, options)
                             .scatter(3, places(blocks, columns), own)
                             .slice_symint(3, 0, columns);
  if (!index.queries.defined()) return map;
  const at::Tensor row = places(index.queries, rows).unsqueeze(3).expand_symint({B, H, Q, columns});
  return at::zeros_symint({B, H, rows + 1, columns}, options).scatter(2, row, map).slice_symint(2, 0, rows);
}

/// The map read at the pair's blocks.
Expr read(const char* name, const BlockIndex& index, const c10::SymInt& heads) {
  const c10::SymInt own = index.blocks.sym_size(1);
  Expr head = 0;
  if (own == heads) {
    head = regard::head();
  } else if (own != 1) {
    head = floor_div(regard::head(), Expr((heads / own).guard_int(__FILE__, __LINE__)));
  }
  return capture(name, Type::boolean,
                 {index.blocks.sym_size(0) == 1 ? Expr(0) : batch(), head, floor_div(row(), Expr(index.query_block)),
                  floor_div(column(), Expr(index.key_block))});
}

}  // namespace

bool maps_blocks(const Call& call, const BlockIndex& index, std::string_view path) {
  const Path named = path_from_name("attention_blocks", path);
  if (named != Path::automatic && named != Path::fused) return false;
  constexpr int64_t kLeastBlock = kernels::BlockList::kLeastBlock;
  return index.query_block >= kLeastBlock && index.key_block >= kLeastBlock && fused_refusal(call).empty();
}

AttentionOutput attend_mapped(const BlockIndex& index, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const AttentionSpec& spec, const AttentionArguments& arguments) {
  const c10::SymInt heads = q.sym_size(1), rows = blocks_in(q.sym_size(2), index.query_block),
                    columns = blocks_in(k.sym_size(2), index.key_block);
  AttentionSpec own = spec;
  AttentionArguments all = arguments;
  const auto names = spec.captures(), operands = spec.operands();
  for (size_t i = 0; i < names.size(); ++i) all.named_captures[names[i]] = arguments.captures[i];
  for (size_t i = 0; i < operands.size(); ++i)
    all.named_operands[operands[i]] = {arguments.operands[2 * i], arguments.operands[2 * i + 1]};
  all.captures.clear();
  all.operands.clear();
  all.named_captures["blocks_kept"] = map_of(index, {}, rows, columns);
  const Expr kept = read("blocks_kept", index, heads);
  if (spec.keep.defined() && index.full.defined()) {
    all.named_captures["blocks_full"] = map_of(index, index.full, rows, columns);
    own.keep = kept & (spec.keep | read("blocks_full", index, heads));
  } else {
    own.keep = spec.keep.defined() ? kept & spec.keep : kept;
  }
  if (spec.counted.defined()) own.counted = kept & spec.counted;
  return attention(q, k, v, own, all);
}

at::Tensor selected_queries(const BlockIndex& index, const c10::SymInt& heads, const c10::SymInt& queries) {
  const c10::SymInt rows = blocks_in(queries, index.query_block);
  const auto options = index.queries.options().dtype(at::kBool);
  const at::Tensor chosen = at::zeros_symint({index.queries.sym_size(0), index.queries.sym_size(1), rows + 1}, options)
                                .scatter(2, places(index.queries, rows), true);
  const at::Tensor block =
      at::div(at::arange(at::Scalar(queries), index.queries.options()), at::Scalar(index.query_block), "floor");
  return repeat_heads(chosen.index_select(2, block).unsqueeze(3), heads).squeeze(3);
}

}  // namespace regard::ops
