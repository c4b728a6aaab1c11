"""`AttentionState`: what attention has seen so far, as a value that grows, merges and is finished."""

from __future__ import annotations

import json

import torch

from .attention import AttentionOutput, _check_tensors, _drawn, _integer, _path, _prepare, _seed
from .errors import fail
from .spec import Spec

__all__ = ["AttentionState"]


class AttentionState:
    """finish(merge(absorb(k1, v1), absorb(k2, v2))) = attention over k1 and k2 together, for every normalizer.

    ::

        state = regard.AttentionState()
        state = state.absorb(q, window_k, window_v, mask=lambda b, h, i, j: i - j < 64)   # one source
        state = state.absorb(q, pooled_k, pooled_v)                                       # another, with its own spec
        o, lse, pairs = state.finish()

    States are values: `absorb` and `merge` return new ones. Merging is associative and commutative up to rounding, a
    state with nothing absorbed is neutral. Everything is differentiable and runs on the kernels of `regard.attention`.
    The sources may differ in score, mask, weight and captures; the normalizer is one. What a paper adds *after* the
    normalization is the sum of the outputs of two finished states.

    Entries, B batch, H heads, M queries, float32 (float64 for float64):

    ==========================  ==========================================================================
    softmax, signed_softmax     o (normalized over what was absorbed), lse; counted_lse with `counted`
    sigmoid                     o
    relu, identity              o; count with a divisor
    sum                         o (not divided), l
    z_score                     n, mean, M2, A, V
    ==========================  ==========================================================================

    and one more of each entry summed over values with pair outputs (`pairs`; z_score: `pairs_A`, `pairs_V`).
    """

    __slots__ = ("entries", "normalizer", "dtype")

    def __init__(self):
        self.entries: dict[str, torch.Tensor] = {}
        self.normalizer: dict | None = None
        self.dtype: torch.dtype | None = None

    def absorb(self, q, k, v, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(), spec=None,
               captures=None, operands=None, normalizer="softmax", scale=None, query_offset=0, key_offset=0,
               is_causal=False, dropout=0.0, seed=None, keys=None, path="auto") -> "AttentionState":
        """The state with k (B, Hk, N, Dh), v (B, Hk, N, Dv) absorbed for q (B, H, M, Dh).

        Arguments are those of `regard.attention`, and

        Args:
            key_offset: position of the first of these keys: j in the functions counts from it. (Not beside `spec`,
                whose positions say it.)
            keys: how many keys all sources have together; needed only where a function reads `regard.expr.keys()`.

        Sink logits are given to `finish`.
        """
        name = "absorb"
        _check_tensors(name, q=q, k=k, v=v)
        query_offset, seed = _integer(name, "query_offset", query_offset), _seed(name, seed)
        key_offset = _integer(name, "key_offset", key_offset)
        if spec is not None and not isinstance(spec, Spec):
            spec = Spec.from_json(spec)
        without_sinks = spec
        if spec is not None and spec.settings["sinks"]:
            table = json.loads(spec.json)
            table["normalizer"]["sinks"] = False
            without_sinks = Spec.from_json(table, spec.captures)
        call = _prepare(name, q, score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                        spec=without_sinks, captures=captures, operands=operands, normalizer=normalizer, scale=scale,
                        is_causal=is_causal, dropout=dropout)
        table = json.loads(call.spec)
        if key_offset:
            if spec is not None:
                fail(name, "key_offset without spec (its positions say where keys lie)", f"key_offset {key_offset}")
            table.setdefault("positions", {})["key"] = {"offset": key_offset}
        seed = _drawn(name, call, seed, q)
        tensors, names = torch.ops.regard.absorb_state(
            q, k, v, json.dumps(table), call.captures, call.operands, seed, query_offset, keys, _path(name, path))
        own = AttentionState()
        own.entries = dict(zip(names, tensors))
        own.normalizer = _normalizer(table)
        own.dtype = q.dtype
        return self.merge(own)

    def merge(self, other: "AttentionState") -> "AttentionState":
        """The state of what both have absorbed."""
        if not isinstance(other, AttentionState):
            fail("merge", "an AttentionState", type(other).__name__)
        if not self.entries or not other.entries:
            return other if not self.entries else self
        if self.normalizer != other.normalizer:
            fail("merge", f"states of one normalizer, {json.dumps(self.normalizer)}", json.dumps(other.normalizer))
        tensors, names = torch.ops.regard.merge_states(
            json.dumps({"normalizer": self.normalizer}), list(self.entries), list(self.entries.values()),
            list(other.entries), list(other.entries.values()))
        merged = AttentionState()
        merged.entries = dict(zip(names, tensors))
        merged.normalizer, merged.dtype = self.normalizer, self.dtype
        return merged

    def finish(self, sinks=None) -> AttentionOutput:
        """o (B, H, M, Dv) in q's dtype, lse (B, H, M), pairs; `sinks` (H) or (H, S) are keys without a value."""
        if not self.entries:
            fail("finish", "a state into which something was absorbed", "none")
        normalizer = dict(self.normalizer)
        if sinks is not None:
            _check_tensors("finish", sinks=sinks)
            normalizer["sinks"] = True
        return AttentionOutput(*torch.ops.regard.finish_state(
            json.dumps({"normalizer": normalizer}), list(self.entries), list(self.entries.values()), sinks, self.dtype))

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.entries.items())
        return f"AttentionState({held or 'nothing absorbed'})"


def _normalizer(table: dict) -> dict:
    """The normalizer of a spec as a dict, without what `finish` decides."""
    normalizer = table.get("normalizer", {"kind": "softmax"})
    normalizer = {"kind": normalizer} if isinstance(normalizer, str) else dict(normalizer)
    normalizer.setdefault("kind", "softmax")
    normalizer.pop("sinks", None)
    return normalizer
