"""`AttentionMap`: the M x N matrix of attention weights, never formed."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attention import _check_tensors, _integer, _path, _prepare
from .errors import fail
from .trace import json_text

__all__ = ["AttentionMap", "RowStatistics"]


class RowStatistics(NamedTuple):
    """What one pass tells of every row, each (B, H, M): see the methods of `AttentionMap` of these names."""

    lse: torch.Tensor
    entropy: torch.Tensor
    mean_distance: torch.Tensor
    mass: torch.Tensor | None


class AttentionMap:
    """P, with P_ij = normalizer(score_i.)_j * weight_ij where the mask keeps (i, j) and 0 elsewhere.

    Takes the arguments of `regard.attention` without v; q (B, H, M, Dh), k (B, Hk, N, Dh). Every method runs one pass
    of O(M + N) memory and is differentiable in q, k and all captured tensors:

        P.apply(v)             P v         (B, H, M, Dv)   v (B, Hk, N, Dv)
        P.apply_transposed(u)  P^T u       (B, H, N, Du)   u (B, H, M, Du)
        P.rows(indices)        chosen rows (B, H, R, N)
        P.column_sums()        P^T 1       (B, H, N)
        P.entropy(), P.mean_distance(), P.mass(marked), P.lse(), P.row_statistics()   (B, H, M)
        P.effective_keys(), P.max(), P.sum_of_squares(), P.own_mass()                 (B, H, M)
        P.column_square_sums()              (B, H, N)
        P.top_k(k)             weights and key indices, each (B, H, M, k)
        P.blocks(p, q)         means over p x q blocks (B, H, ceil(M / p), ceil(N / q))
        P.offsets(reach)       sums by i - j, (B, H, 2 reach + 1)
        P.measure(names, ...)  any of these by name, from as few passes as there are
    """

    def __init__(self, q, k, *, score=None, mask=None, weight=None, counted=None, spec=None, captures=None,
                 operands=None, normalizer="softmax", sinks=None, scale=None, query_offset=0, is_causal=False,
                 path="auto"):
        _check_tensors("AttentionMap", q=q, k=k)
        call = _prepare("AttentionMap", q, score=score, mask=mask, weight=weight, counted=counted, spec=spec,
                        captures=captures, operands=operands, normalizer=normalizer, sinks=sinks, scale=scale,
                        is_causal=is_causal)
        if call.dropout:
            fail("AttentionMap", "a spec without dropout", f"dropout {call.dropout}")
        if call.pairs:
            fail("AttentionMap", "a spec without pair outputs", "pair outputs")
        self._q, self._k, self._sinks = q, k, sinks
        self._call, self._path = call, _path("AttentionMap", path)
        self._offset = _integer("AttentionMap", "query_offset", query_offset)
        self._captures = dict(zip(call.names, call.captures))

    def __repr__(self) -> str:
        b, h, m = self._q.shape[:3]
        return f"AttentionMap(batch={b}, heads={h}, queries={m}, keys={self._k.shape[2]})"

    def apply(self, v):
        """P v: (B, Hk, N, Dv) -> (B, H, M, Dv)."""
        _check_tensors("AttentionMap.apply", v=v)
        return self._attend(v, self._call.spec, self._call.captures)[0]

    def apply_transposed(self, u):
        """P^T u: (B, H, M, Du) -> (B, H, N, Du), for every query head."""
        _check_tensors("AttentionMap.apply_transposed", u=u)
        return torch.ops.regard.attention_transposed(
            self._q, self._k, u, self._call.spec, self._call.captures, self._call.operands, self._sinks,
            query_offset=self._offset, path=self._path)

    def rows(self, indices):
        """The rows P_i. of the given queries: indices (R), or one integer -> (B, H, R, N)."""
        rows = torch.as_tensor(indices, device=self._q.device)
        if rows.dtype == torch.bool or rows.is_floating_point() or rows.dim() > 1:
            fail("AttentionMap.rows", "integer indices (R)", f"{rows.dtype} of shape {tuple(rows.shape)}")
        return torch.ops.regard.attention_rows(
            self._q, self._k, rows.reshape(-1).long(), self._call.spec, self._call.captures, self._call.operands,
            self._sinks, query_offset=self._offset)

    def column_sums(self):
        """sum_i P_ij, what every key receives: (B, H, N)."""
        ones = self._q.new_ones(()).expand(*self._q.shape[:3], 1)
        return self.apply_transposed(ones).squeeze(-1)

    def lse(self):
        """log sum_j exp(score_ij) over the kept keys; -inf for a row without keys: (B, H, M)."""
        return self._statistics([])[1]

    def entropy(self):
        """-sum_j P_ij log P_ij in nats; 0 for a row without keys: (B, H, M). Softmax without weight."""
        return self._entropy(*self._statistics(self._entropy_outputs()))

    def mean_distance(self):
        """sum_j P_ij |i - j|: (B, H, M)."""
        return self._statistics([_distance])[2][..., 0]

    def mass(self, marked):
        """sum_j P_ij marked_j, the weight on marked keys: (B, H, M).

        marked: (N), (B, N), (B, H, N) or (B, H, M, N), boolean or a float weight; axes of size 1 broadcast.
        """
        return self._statistics([self._mass_output(marked)])[2][..., 0]

    def effective_keys(self):
        """exp(entropy), the effective number of keys; 0 for a row without keys: (B, H, M)."""
        return self.measure("effective_keys")

    def max(self):
        """max_j P_ij: (B, H, M)."""
        return self.measure("max")

    def sum_of_squares(self):
        """sum_j P_ij^2: (B, H, M)."""
        return self.measure("sum_of_squares")

    def own_mass(self):
        """P_ij of the key at the query's own position: (B, H, M)."""
        return self.measure("own_mass")

    def column_square_sums(self):
        """sum_i P_ij^2: (B, H, N)."""
        return self.measure("column_square_sums")

    def top_k(self, k: int):
        """The k largest weights of each row, falling, and their key indices, -1 where the weight is 0: (B, H, M, k)."""
        k = _integer("AttentionMap.top_k", "k", k)
        return tuple(self.measure([f"top_k:{k}", f"top_k_index:{k}"]).values())

    def blocks(self, rows: int, columns: int | None = None):
        """Means of P over blocks of `rows` x `columns` (default square), smaller at the ends."""
        p = _integer("AttentionMap.blocks", "rows", rows)
        q = p if columns is None else _integer("AttentionMap.blocks", "columns", columns)
        return self.measure(f"blocks:{p}x{q}")

    def offsets(self, reach: int):
        """sum of P_ij with i - j = -reach .. reach, what lies beyond in the ends: (B, H, 2 reach + 1)."""
        return self.measure(f"offsets:{_integer('AttentionMap.offsets', 'reach', reach)}")

    def measure(self, names, marked=None):
        """Reductions by their names: one name -> its tensor, a list of them -> a dict.

        entropy, effective_keys, max, mass, mass:KEYS, marked_mass (reads `marked`), own_mass, mean_distance,
        sum_of_squares, column_sums, column_square_sums, top_k:K, top_k_index:K, rows, rows:ROWS, blocks:PxQ, offsets:R;
        KEYS and ROWS are lists such as "0,4,8-15". For every normalizer; entropies where no weight is negative.
        """
        listed = [names] if isinstance(names, str) else list(names)
        if not all(isinstance(name, str) for name in listed):
            fail("AttentionMap.measure", "names of reductions", ", ".join(type(name).__name__ for name in listed))
        if marked is not None:
            _check_tensors("AttentionMap.measure", marked=marked)
        found = torch.ops.regard.attention_taps(
            self._q, self._k, listed, self._call.spec, self._call.captures, self._call.operands, self._sinks,
            query_offset=self._offset, path=self._path, marked=marked)
        return found[0] if isinstance(names, str) else dict(zip(listed, found))

    def row_statistics(self, marked=None) -> RowStatistics:
        """lse, entropy, mean distance and, if `marked` is given, mass: all from one pass."""
        outputs = self._entropy_outputs()
        extra = [_distance] + ([] if marked is None else [self._mass_output(marked)])
        o, lse, pairs = self._statistics(outputs + extra)
        rest = pairs[..., len(outputs):]
        return RowStatistics(lse, self._entropy(o, lse, pairs), rest[..., 0], None if marked is None else rest[..., 1])

    # A pair output is given by a function that appends nodes to a table and returns the node of its value.

    def _statistics(self, outputs):
        table = {**self._call.table, "nodes": list(self._call.table.get("nodes", ()))}
        captures = dict(self._captures)
        listed = [{"value": output(table, captures)} for output in outputs]
        if listed:
            table["pair_outputs"] = listed
        ordered = [captures[name] for name in sorted(captures)]
        v = self._k[..., :0]
        return self._attend(v, json_text(table), ordered)

    def _attend(self, v, spec, captures):
        return torch.ops.regard.attention(self._q, self._k, v, spec, captures, self._call.operands, self._sinks,
                                          query_offset=self._offset, path=self._path)

    def _entropy_outputs(self):
        if self._call.normalizer != "softmax" or self._call.weight:
            found = "a weight" if self._call.weight else f"normalizer {self._call.normalizer}"
            fail("AttentionMap.entropy", "softmax weights alone", found)
        return [_score] if self._sinks is None else [_score, _one]

    def _entropy(self, o, lse, pairs):
        # -sum p log p = lse sum p - sum p s. With sinks the keys' share sum p is below 1.
        empty = torch.isneginf(lse)
        finite = torch.where(empty, 0.0, lse)
        share = 1.0 if self._sinks is None else pairs[..., 1]
        return torch.where(empty, 0.0, finite * share - pairs[..., 0])

    def _mass_output(self, marked):
        name = "AttentionMap.mass"
        _check_tensors(name, marked=marked)
        whole = (*self._q.shape[:3], self._k.shape[2])
        axes = {1: (3,), 2: (0, 3), 3: (0, 1, 3), 4: (0, 1, 2, 3)}.get(marked.dim())
        if axes is None or any(size not in (1, whole[axis]) for size, axis in zip(marked.shape, axes)):
            fail(name, f"marked (N), (B, N), (B, H, N) or (B, H, M, N) with B, H, M, N = {whole}",
                 f"shape {tuple(marked.shape)}")

        def output(table, captures):
            nodes, taken = table["nodes"], "marked"
            while taken in captures:
                taken += "_"
            captures[taken] = marked
            kind = "bool" if marked.dtype == torch.bool else "float" if marked.is_floating_point() else "int"
            index = [_append(nodes, ("batch", "head", "row", "column")[axis]) if size != 1
                     else _append(nodes, "constant", 0, "int") for size, axis in zip(marked.shape, axes)]
            return _real(nodes, _append(nodes, "capture", taken, kind, *index), kind)

        return output


def _append(nodes: list, *node) -> int:
    nodes.append(list(node))
    return len(nodes) - 1


def _real(nodes: list, node: int, kind: str) -> int:
    return node if kind == "float" else _append(nodes, "cast", node, "float")


def _score(table: dict, captures: dict) -> int:
    """The score where the pair has weight, else 0: a score of -inf has weight 0 and must not make 0 * inf."""
    nodes = table["nodes"]
    score = table.get("score")
    if score is None:
        score = _append(nodes, "mul", _append(nodes, "scale"), _append(nodes, "dot"))
    finite = _append(nodes, "gt", score, _append(nodes, "constant", "-inf", "float"))
    return _append(nodes, "where", finite, score, _append(nodes, "constant", 0.0, "float"))


def _one(table: dict, captures: dict) -> int:
    return _append(table["nodes"], "constant", 1.0, "float")


def _distance(table: dict, captures: dict) -> int:
    nodes = table["nodes"]
    apart = _append(nodes, "sub", _append(nodes, "query"), _append(nodes, "key"))
    return _real(nodes, _append(nodes, "abs", apart), "int")
