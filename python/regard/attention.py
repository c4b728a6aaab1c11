"""`attention` and what belongs to it: torch's drop-in, merging, counters, strict mode."""

from __future__ import annotations

import contextlib
import json
import operator
from typing import NamedTuple

import torch

from . import _library  # noqa: F401  loads the ops
from .errors import fail, suggestion
from .explanation import Explanation
from .spec import Spec
from .trace import trace

__all__ = ["AttentionOutput", "attention", "merge", "path_counts", "reset_path_counts", "reset_route_counts",
           "route_counts", "scaled_dot_product_attention",
           "strict"]

PATHS = ("auto", "fused", "stripe", "composite")


class AttentionOutput(NamedTuple):
    """o (B, H, M, Dv) in q's dtype; lse (B, H, M) and pairs (B, H, M, channels) in float32 (float64 for float64)."""

    o: torch.Tensor
    lse: torch.Tensor
    pairs: torch.Tensor


def attention(q, k, v, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(), spec=None, captures=None,
              operands=None, normalizer="softmax", sinks=None, scale=None, query_offset=0, is_causal=False,
              dropout=0.0, seed=None, path="auto", return_lse=False, cu_seqlens=None, cu_seqlens_q=None,
              cu_seqlens_k=None, explain=False):
    """o_i = sum_j normalizer(score_i.)_j * weight_ij * v_j over the keys j that the mask keeps.

    Shapes: q (B, H, M, Dh), k (B, Hk, N, Dh), v (B, Hk, N, Dv); Hk divides H and query head h reads key head
    h // (H / Hk). float64, float32, bfloat16 or float16. Differentiable to any order in q, k, v, sinks, operands and in
    every tensor that the functions read.

    Functions are traced once per call, never evaluated M x N times. They see one pair: the batch b, the query head h,
    the query position i and the key position j as integers, and read captured tensors by index:

        score(s, b, h, i, j)    what the pair scores; s = scale * <q_i, k_j> (FlexAttention's score_mod)
        mask(b, h, i, j)        True where the pair exists (FlexAttention's mask_mod)
        weight(b, h, i, j)      multiplies the normalized weight; or weight(s, b, h, i, j), s the final score
        counted(b, h, i, j)     which pairs enter the normalizer; default the mask
        pair_outputs            `PairOutput`s or functions: sums over keys of w_ij * value, returned beside o

    Args:
        spec: a `Spec`, or its JSON, in place of the functions and of normalizer, scale, dropout, is_causal.
        captures: dict of the tensors that `spec` reads by name; default those it was traced with.
        operands: dict name -> (q_x, k_x) of the extra pairs that `regard.expr.dot("name")` reads,
            (B, Hx, M, Dx) and (B, Hx, N, Dx); Hx divides H, query head h reads head h // (H / Hx).
        normalizer: "softmax", "signed_softmax", "sum", "sigmoid", "relu", "identity", "z_score", or a dict with the
            keys kind, divisor, floor, epsilon, epsilon_place ("inside", "outside", "inside_count"), detach.
        sinks: sink logits (H) or (H, S): keys without a value, softmax only.
        scale: default 1 / sqrt(Dh).
        query_offset: the position of the first query. A causal mask is aligned top-left, as torch's is (query i sees
            keys j <= i, also when M != N); query_offset = N - M aligns it bottom-right.
        is_causal: the mask i >= j, beside `mask` if both are given.
        dropout, seed: probability that a weight is dropped, and an int64 scalar tensor that decides which (default:
            drawn from torch's generator).
        path: "auto", or "fused", "stripe", "composite" to ask for one; a path that cannot run is an error.
        return_lse: also return the natural logarithm of the softmax denominator.
        cu_seqlens: packed sequences, q (1, H, T, Dh), k and v likewise: (S + 1) integers, where each begins, 0 first
            and T last. Every sequence attends to itself alone, and i and j count from its beginning. cu_seqlens_q and
            cu_seqlens_k in place of it where queries and keys are of different sequences, the same number of them.
        explain: return an `Explanation` of this very call in place of its result: the kernel that runs it and why the
            others do not, FLOPs, bytes, roofline and measured time, forward and backward. `print(...)` shows tables.

    Returns:
        o (B, H, M, Dv); or (o, lse); or, with pair outputs, AttentionOutput(o, lse, pairs). A query without keys has
        o = 0, lse = -inf and zero gradients.

    Errors: ValueError "[attention] expected ...; found ..." naming the argument; a function that cannot be traced
    raises `TraceError` with its file and line.
    """
    if not (isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor)):
        _check_tensors("attention", q=q, k=k, v=v)
    if type(query_offset) is not int:
        query_offset = _integer("attention", "query_offset", query_offset)
    if seed is not None:
        seed = _seed("attention", seed)
    call = None
    if score is mask is weight is counted is captures is operands is sinks is spec is None and not pair_outputs:
        call = _defaults(normalizer, scale, is_causal, dropout)
    if call is None:
        call = _prepare("attention", q, score=score, mask=mask, weight=weight, counted=counted,
                        pair_outputs=pair_outputs, spec=spec, captures=captures, operands=operands,
                        normalizer=normalizer, sinks=sinks, scale=scale, is_causal=is_causal, dropout=dropout)
    if call.dropout or seed is not None:
        seed = _drawn("attention", call, seed, q)
    path = path if path in PATHS else _path("attention", path)
    if explain:
        if not cu_seqlens is cu_seqlens_q is cu_seqlens_k is None:
            fail("attention", "explain without packed sequences", "cu_seqlens")
        return Explanation(torch.ops.regard.explain_call(q, k, v, call.spec, call.captures, call.operands, sinks, seed,
                                                         query_offset, path))
    if cu_seqlens is cu_seqlens_q is cu_seqlens_k is None:
        o, lse, pairs = _ATTENTION(q, k, v, call.spec, call.captures, call.operands, sinks, seed, query_offset, path)
    else:
        packed = _packed("attention", cu_seqlens, cu_seqlens_q, cu_seqlens_k)
        o, lse, pairs = torch.ops.regard.attention_packed(q, k, v, *packed, call.spec, call.captures, call.operands,
                                                          sinks, seed, query_offset, path)
    if call.pairs:
        return AttentionOutput(o, lse, pairs)
    return (o, lse) if return_lse else o


_ATTENTION = torch.ops.regard.attention.default
_made: dict[tuple, "_Call"] = {}  # calls without functions, by their settings: nothing is traced for them again


def _defaults(normalizer, scale, is_causal, dropout) -> "_Call | None":
    """A call that brings settings alone; None for what `_prepare` has to look at."""
    if torch.compiler.is_compiling():
        return None
    key = (normalizer, scale, is_causal, dropout)
    # Equal keys of other types (1 and True) would pass unchecked.
    if type(normalizer) is not str or type(is_causal) is not bool or type(dropout) is not float or \
            not (scale is None or type(scale) is float):
        return None
    call = _made.get(key)
    if call is None:
        if len(_made) >= 1024:  # a scale of its own every call
            _made.clear()
        call = _made[key] = _prepare("attention", None, normalizer=normalizer, scale=scale, is_causal=is_causal,
                                     dropout=dropout)
    return call


def _drawn(function: str, call: "_Call", seed, q):
    """The seed of a call that drops weights, drawn where none is given."""
    if call.dropout and seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=q.device)
    if seed is not None and not call.dropout:
        fail(function, "no seed without dropout", "seed")
    return seed


def _packed(function: str, cu_seqlens, cu_seqlens_q, cu_seqlens_k) -> tuple:
    """(of the queries, of the keys), or () when nothing is packed."""
    given = {"cu_seqlens": cu_seqlens, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    given = {name: bounds for name, bounds in given.items() if bounds is not None}
    if not given:
        return ()
    _check_tensors(function, **given)
    if set(given) not in ({"cu_seqlens"}, {"cu_seqlens_q", "cu_seqlens_k"}):
        fail(function, "cu_seqlens, or cu_seqlens_q and cu_seqlens_k", ", ".join(given))
    return tuple(given.values()) * (2 if cu_seqlens is not None else 1)


class _Call(NamedTuple):
    """What an op needs beside q, k, v."""

    spec: str
    table: dict
    names: list
    captures: list
    operands: list
    dropout: float
    pairs: bool
    normalizer: str
    weight: bool


def _prepare(function, q, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(), spec=None,
             captures=None, operands=None, normalizer="softmax", sinks=None, scale=None, is_causal=False,
             dropout=0.0) -> _Call:
    """Functions or a spec to the arguments of an op."""
    if sinks is not None:
        _check_tensors(function, sinks=sinks)
    if spec is not None:
        if pair_outputs or is_causal or dropout or normalizer != "softmax" or \
                not score is mask is weight is counted is scale is None:
            given = {"score": score is not None, "mask": mask is not None, "weight": weight is not None,
                     "counted": counted is not None, "pair_outputs": bool(pair_outputs), "is_causal": bool(is_causal),
                     "normalizer": normalizer != "softmax", "scale": scale is not None, "dropout": bool(dropout)}
            twice = [name for name, set_ in given.items() if set_]
            fail(function, "either spec or the arguments that make one", f"spec and {', '.join(twice)}")
        if not isinstance(spec, Spec):
            spec = Spec.from_json(spec)
        settings, text, table = spec.settings, spec.json, spec.table
        tensors = spec.captures if captures is None else captures
        names, operand_names = settings["captures"], spec.operands
        if settings["sinks"] != (sinks is not None):
            fail(function, "sinks exactly when the spec has them",
                 f"{'no ' if sinks is None else ''}sinks with a spec {'with' if settings['sinks'] else 'without'} them")
        extra = (settings["dropout"], settings["pairs"], settings["normalizer"], settings["weight"])
    else:
        if captures is not None:
            fail(function, "captures only beside spec (functions bring their own tensors)", "captures without spec")
        traced = trace(function, score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                       normalizer=normalizer, sinks=sinks is not None, scale=scale, dropout=dropout,
                       is_causal=is_causal, device=None if q is None else q.device)
        text, table, tensors, operand_names = traced
        names = list(tensors)
        kind = normalizer if isinstance(normalizer, str) else normalizer.get("kind", "softmax")
        extra = (dropout, bool(pair_outputs), kind, weight is not None)
    return _Call(text, table, names, _named_tensors(function, names, tensors),
                 _pairs(function, operand_names, operands), *extra)


def _named_tensors(function: str, names: list[str], tensors) -> list:
    """The captures in the order of their sorted names."""
    if not names and tensors == {}:
        return []
    if not isinstance(tensors, dict):
        fail(function, "captures to be a dict of tensors by name", type(tensors).__name__)
    for name in tensors:
        if name not in names:
            fail(function, f"captures named {', '.join(names) or 'nothing'}", f"'{name}'{suggestion(name, names)}")
    missing = [name for name in names if name not in tensors]
    if missing:
        fail(function, f"captures for {', '.join(names)}", f"none named {', '.join(missing)}")
    ordered = [tensors[name] for name in names]
    _check_tensors(function, **{f"captures['{name}']": tensor for name, tensor in zip(names, ordered)})
    return ordered


def _pairs(function: str, names: list[str], operands) -> list:
    """q_x, k_x of every operand name, interleaved, in the order of the sorted names."""
    if not names and operands is None:
        return []
    operands = {} if operands is None else operands
    if not isinstance(operands, dict):
        fail(function, "operands to be a dict name -> (q_x, k_x)", type(operands).__name__)
    if sorted(operands) != names:
        fail(function, f"operands named {', '.join(names) or 'nothing'} (those that dot(name) reads)",
             ", ".join(sorted(operands)) or "none")
    flat = []
    for name in names:
        pair = operands[name]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            fail(function, f"operands['{name}'] to be a pair (q_x, k_x)", type(pair).__name__)
        _check_tensors(function, **{f"operands['{name}'][0]": pair[0], f"operands['{name}'][1]": pair[1]})
        flat += pair
    return flat


def _check_tensors(function: str, **tensors) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            fail(function, f"{name} to be a tensor", type(tensor).__name__)


def _integer(function: str, name: str, value):
    """An integer of Python, numpy, a tensor of one, or a traced size."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    fail(function, f"{name} to be an integer", _shown(value))


def _shown(value) -> str:
    """A small value as it is written, else its type."""
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def _seed(function: str, seed):
    """An int64 scalar tensor (the op looks at its dtype and shape), an integer, or None."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not whole and not isinstance(seed, torch.Tensor):
        fail(function, "seed to be an int64 scalar tensor", _shown(seed))
    return seed


def _path(function: str, path: str) -> str:
    if path not in PATHS:
        fail(function, f"path among {', '.join(PATHS)}", f"{path!r}{suggestion(str(path), PATHS)}")
    return path


def merge(o1, lse1, o2, lse2):
    """lse = log(e^lse1 + e^lse2), o = (e^lse1 o1 + e^lse2 o2) / e^lse: two softmax states over disjoint keys as one.

    o (B, H, M, Dv), lse (B, H, M). Associative and commutative; the neutral element is (0, -inf). Differentiable.
    """
    _check_tensors("merge", o1=o1, lse1=lse1, o2=o2, lse2=lse2)
    return torch.ops.regard.merge(o1, lse1, o2, lse2)


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                                 enable_gqa=False):
    """torch.nn.functional.scaled_dot_product_attention with the same arguments, on Regard's attention.

    query (..., H, M, Dh), key (..., Hk, N, Dh), value (..., Hk, N, Dv); fewer axes are read as torch reads them.
    attn_mask: boolean (True = attends) or additive, broadcastable to (..., H, M, N). A query without keys gives zeros.
    """
    name = "scaled_dot_product_attention"
    _check_tensors(name, query=query, key=key, value=value)
    if attn_mask is not None and is_causal:
        fail(name, "attn_mask or is_causal, not both", "both")
    if query.dim() < 2 or key.dim() != query.dim() or value.dim() != query.dim():
        fail(name, "query, key and value of one rank, at least 2",
             f"{query.dim()}, {key.dim()} and {value.dim()} axes")
    if query.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]:
        batch, q, k, v = query.shape[:1], query, key, value
    else:
        batch = torch.broadcast_shapes(*[x.shape[:-3] for x in (query, key, value)])
        q, k, v = (_four_axes(x, batch) for x in (query, key, value))
    if q.shape[1] != k.shape[1] and not enable_gqa:
        fail(name, "as many key heads as query heads (or enable_gqa=True)", f"{k.shape[1]} and {q.shape[1]}")
    functions = {}
    if attn_mask is not None:
        _check_tensors(name, attn_mask=attn_mask)
        functions = _mask_functions(name, attn_mask, query, batch, k.shape[2])
    o = attention(q, k, v, scale=scale, dropout=dropout_p, is_causal=is_causal, **functions)
    return o if query.dim() == 4 else o.reshape(*batch, *query.shape[-3:-1], v.shape[-1])


def _four_axes(x: torch.Tensor, batch) -> torch.Tensor:
    """(..., H, L, D) as (B, H, L, D); a missing head axis is one head."""
    if x.dim() == 4 and x.shape[:1] == batch:
        return x
    x = x if x.dim() >= 3 else x.unsqueeze(0)
    return x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])


def _mask_functions(name: str, attn_mask, query, batch, keys) -> dict:
    """attn_mask as a mask or a score function: broadcast axes are read at 0, never expanded."""
    heads, queries = (query.shape[-3] if query.dim() > 2 else 1), query.shape[-2]
    whole = (*batch, heads, queries, keys)
    shape = (1,) * (len(whole) - attn_mask.dim()) + tuple(attn_mask.shape)
    if len(shape) != len(whole) or any(a not in (1, b) for a, b in zip(shape, whole)):
        fail(name, f"attn_mask that broadcasts to {tuple(whole)}", f"shape {tuple(attn_mask.shape)}")
    table = attn_mask.reshape(shape)
    if any(size != 1 for size in shape[:-3]):
        table = table.expand(*batch, *shape[-3:])
    table = table.reshape(-1, *shape[-3:])

    def read(b, h, i, j):
        return table[tuple(x if size != 1 else 0 for x, size in zip((b, h, i, j), table.shape))]

    if attn_mask.dtype == torch.bool:
        return {"mask": read}
    return {"score": lambda s, b, h, i, j: s + read(b, h, i, j)}


def route_counts() -> dict[str, int]:
    """How often each kernel of the fused path ran: {"tile": 3, "few_queries": 1, "amx": 0}."""
    return json.loads(torch.ops.regard.route_counts())


def reset_route_counts() -> None:
    """Sets all counters of `route_counts` to zero."""
    torch.ops.regard.reset_route_counts()


def path_counts() -> dict[str, dict[str, int]]:
    """How often each op ran on each path: {"attention": {"fused": 3, "stripe": 0, "composite": 1}, ...}."""
    return json.loads(torch.ops.regard.path_counts())


def reset_path_counts() -> None:
    """Sets all counters of `path_counts` to zero."""
    torch.ops.regard.reset_path_counts()


@contextlib.contextmanager
def strict(enabled: bool = True):
    """Within it, path="auto" raises where an op would not run fused, in place of falling back."""
    before = torch.ops.regard.set_strict(enabled)
    try:
        yield
    finally:
        torch.ops.regard.set_strict(before)
