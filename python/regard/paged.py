"""`attention_paged`: attention over keys and values that lie in pages."""

from __future__ import annotations

import torch

from .attention import AttentionOutput, _check_tensors, _drawn, _integer, _path, _prepare, _seed

__all__ = ["attention_paged"]


def attention_paged(q, k_pages, v_pages, table, lengths, *, score=None, mask=None, weight=None, counted=None,
                    pair_outputs=(), spec=None, captures=None, operands=None, normalizer="softmax", sinks=None,
                    scale=None, query_offset=0, query_positions=None, is_causal=False, dropout=0.0, seed=None,
                    path="auto", return_lse=False):
    """`attention` over keys and values that lie in pages: token j of sequence b is entry j % page of page
    table[b, j // page].

    Shapes: q (B, H, M, Dh); k_pages (P, Hk, page, Dh), v_pages (P, Hk, page, Dv); table (B, n) integer; lengths (B)
    integer, the tokens of each sequence, at most n * page. Entries of the table behind a sequence's last page are not
    read (-1 will do), nor are tokens behind its length. j is the token's place in its sequence; i is the row plus
    query_offset, or query_positions (M) or (B, M): for a decode whose M queries are the last tokens of each sequence
    ``lengths[:, None] - M + torch.arange(M)``. Differentiable in q, the pages, and all that `attention` is.

    A reference form: the pages of the call are gathered, O(B n page) memory. Other arguments, results and errors are
    those of `attention`.
    """
    name = "attention_paged"
    _check_tensors(name, q=q, k_pages=k_pages, v_pages=v_pages, table=table, lengths=lengths)
    if query_positions is not None:
        _check_tensors(name, query_positions=query_positions)
    query_offset, seed = _integer(name, "query_offset", query_offset), _seed(name, seed)
    call = _prepare(name, q, score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                    spec=spec, captures=captures, operands=operands, normalizer=normalizer, sinks=sinks, scale=scale,
                    is_causal=is_causal, dropout=dropout)
    seed = _drawn(name, call, seed, q)
    output = AttentionOutput(*torch.ops.regard.attention_paged(
        q, k_pages, v_pages, table, lengths, call.spec, call.captures, call.operands, sinks, seed, query_offset,
        _path(name, path), query_positions))
    if call.pairs:
        return output
    return (output.o, output.lse) if return_lse else output.o
