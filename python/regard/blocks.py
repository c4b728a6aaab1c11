"""`BlockIndex` and `attention_blocks`: attention to the key blocks that were chosen, and to nothing else."""

from __future__ import annotations

import dataclasses

import torch

from .attention import AttentionOutput, _check_tensors, _integer, _path, _prepare
from .errors import fail

__all__ = ["BlockIndex", "attention_blocks"]


@dataclasses.dataclass
class BlockIndex:
    """Which key blocks each query block attends to, head by head.

    Pair (i, j) exists iff j // key_block is among blocks[b, h, i // query_block] and (that block is full, or the mask
    holds for the pair). Blocks are runs of tokens of any length down to one, the last one possibly shorter.

    Args:
        blocks: (B or 1, Hi, Q, K) int64, key blocks in [0, ceil(N / key_block)), each at most once a row, -1 for none.
            Hi divides H: query head h reads index head h // (H / Hi).
        query_block, key_block: tokens of a block.
        full: bool like blocks, where the mask need not be asked. Default: nowhere.
        queries: (B or 1, Hi, Q) int64, the query blocks that the rows belong to, -1 for none. Default: all in order.
        otherwise: o of the queries that are not selected, broadcast to (B, H, M, Dv). Default: 0.
    """

    blocks: torch.Tensor
    query_block: int
    key_block: int
    full: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    otherwise: torch.Tensor | None = None

    @classmethod
    def from_mask(cls, kept, query_block: int, key_block: int, **options) -> BlockIndex:
        """From kept (B or 1, Hi, Q, Nb) bool, true where a pair of blocks is attended."""
        _check_tensors("BlockIndex.from_mask", kept=kept)
        return cls(torch.ops.regard.blocks_from_mask(kept), query_block, key_block, **options)


def attention_blocks(q, k, v, index: BlockIndex, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(),
                     spec=None, captures=None, operands=None, sinks=None, scale=None, query_offset=0, is_causal=False,
                     path="auto", return_lse=False):
    """o_i = sum_j softmax(score_i.)_j * weight_ij * v_j over the pairs (i, j) that the index keeps.

    q (B, H, M, Dh), k (B, Hk, N, Dh), v (B, Hk, N, Dv) and every other argument as in `regard.attention`; functions see
    the indices of the whole call. Memory grows with what is kept, never with M N; differentiable to any order, the
    choice carries no gradient. A selected query without keys gives zeros, one not selected gives index.otherwise.

    Errors: ValueError for normalizers but softmax, dropout, and an index of other shapes, out of range or with a block
    twice in a row.
    """
    name = "attention_blocks"
    _check_tensors(name, q=q, k=k, v=v)
    if not isinstance(index, BlockIndex):
        fail(name, "index to be a BlockIndex", type(index).__name__)
    optional = {"full": index.full, "queries": index.queries, "otherwise": index.otherwise}
    _check_tensors(name, blocks=index.blocks, **{key: t for key, t in optional.items() if t is not None})
    call = _prepare(name, q, score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                    spec=spec, captures=captures, operands=operands, sinks=sinks, scale=scale, is_causal=is_causal)
    output = AttentionOutput(*torch.ops.regard.attention_blocks(
        q, k, v, index.blocks, _integer(name, "query_block", index.query_block),
        _integer(name, "key_block", index.key_block), call.spec, call.captures, call.operands, **optional, sinks=sinks,
        query_offset=_integer(name, "query_offset", query_offset), path=_path(name, path)))
    if call.pairs:
        return output
    return (output.o, output.lse) if return_lse else output.o
