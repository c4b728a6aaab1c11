// torch.ops.regard.attention_blocks and block_index: composite over gathers and torch.ops.regard.attention, so they
// trace down to it.

#include <torch/library.h>

#include "regard/ops/block_index.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_blocks_op(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks, int64_t query_block,
    int64_t key_block, std::string spec, at::TensorList captures, at::TensorList operands, const OptionalTensor& full,
    const OptionalTensor& queries, const OptionalTensor& otherwise, const OptionalTensor& sinks,
    c10::SymInt query_offset, std::string path) {
  BlockIndex index;
  index.query_block = query_block;
  index.key_block = key_block;
  index.blocks = blocks;
  index.full = full.value_or(at::Tensor());
  index.queries = queries.value_or(at::Tensor());
  index.otherwise = otherwise.value_or(at::Tensor());
  AttentionArguments arguments;
  arguments.captures = captures.vec();
  arguments.operands = operands.vec();
  arguments.sinks = sinks.value_or(at::Tensor());
  arguments.query_offset = query_offset;
  arguments.path = path;
  const AttentionOutput out = attention_blocks(q, k, v, index, spec_from_json(spec), arguments);
  return {out.o, out.lse, out.pairs};
}

at::Tensor blocks_from_mask(const at::Tensor& kept) { return BlockIndex::from_mask(kept); }

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention_blocks(Tensor q, Tensor k, Tensor v, Tensor blocks, int query_block, int key_block, str spec, "
      "Tensor[] captures, Tensor[] operands, Tensor? full=None, Tensor? queries=None, Tensor? otherwise=None, "
      "Tensor? sinks=None, SymInt query_offset=0, str path='auto') -> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&attention_blocks_op>);
  m.def("blocks_from_mask(Tensor kept) -> Tensor", guarded<&blocks_from_mask>);
}

// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) {
  m.impl("attention_blocks", guarded<&attention_blocks_op>);
}

}  // namespace
}  // namespace regard
