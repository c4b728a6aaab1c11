"""Attention by the book: the user's functions called on whole index tensors, M x N formed. Float64, autograd."""

import functools
import math

import torch


def positions(B, H, M, N, query_offset=0):
    """b, h, i, j as tensors that broadcast to (B, H, M, N)."""
    b = torch.arange(B)[:, None, None, None]
    h = torch.arange(H)[None, :, None, None]
    i = (torch.arange(M) + query_offset)[None, None, :, None]
    j = torch.arange(N)[None, None, None, :]
    return b, h, i, j


def scores(q, k, scale=None):
    """scale * <q_i, k_j>: (B, H, M, N)."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return scale * (q @ k.transpose(-1, -2))


def double(function):
    """Python numbers and quotients of integers count as float64 inside."""
    @functools.wraps(function)
    def run(*args, **kwargs):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    return run


def full(value, shape, dtype=None):
    """A function's result on all pairs, whatever it depends on."""
    value = torch.as_tensor(value, dtype=dtype)
    return value.expand(shape)


@double
def weights(q, k, *, score=None, mask=None, weight=None, scale=None, query_offset=0, is_causal=False, sinks=None):
    """Softmax weights (B, H, M, N) and lse (B, H, M); a row without keys has weights 0 and lse -inf."""
    s = scores(q, k, scale)
    pair = positions(*s.shape, query_offset)
    if score is not None:
        s = full(score(s, *pair), s.shape).to(s.dtype)
    keep = torch.ones(s.shape, dtype=torch.bool)
    if mask is not None:
        keep = keep & full(mask(*pair), s.shape)
    if is_causal:
        keep = keep & (pair[2] >= pair[3])
    keep = keep & ~torch.isneginf(s)
    logits = torch.where(keep, s, -math.inf)
    if sinks is not None:
        sinks = sinks.reshape(s.shape[1], -1)[None, :, None, :].expand(*s.shape[:3], -1)
        logits = torch.cat([logits, sinks], dim=-1)
    alive = ~torch.isneginf(logits).all(-1)
    lse = torch.logsumexp(torch.where(alive[..., None], logits, 0.0), -1)
    p = torch.where(keep, torch.exp(torch.where(keep, s, 0.0) - lse[..., None]), 0.0)
    p = torch.where(alive[..., None], p, 0.0)
    if weight is not None:
        p = p * full(weight(*pair), s.shape)
    return p, torch.where(alive, lse, -math.inf)


def attention(q, k, v, **arguments):
    """o (B, H, M, Dv), lse (B, H, M)."""
    p, lse = weights(q, k, **arguments)
    return p @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1), lse


def evaluate(table, captures, s, query_offset=0):
    """All nodes of a spec's table on whole index tensors; s is scale * dot. Returns the list of node values."""
    pair = dict(zip(("batch", "head", "query", "key"), positions(*s.shape, query_offset)))
    pair |= dict(zip(("batches", "heads", "queries", "keys"), (torch.tensor(n) for n in s.shape)))
    types = {"float": s.dtype, "int": torch.int64, "bool": torch.bool}
    one = {"neg": torch.neg, "abs": torch.abs, "floor": torch.floor, "exp": torch.exp, "log": torch.log,
           "tanh": torch.tanh, "sigmoid": torch.sigmoid, "sqrt": torch.sqrt, "cos": torch.cos, "sin": torch.sin,
           "logical_not": torch.logical_not}
    two = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "floor_div": torch.floor_divide,
           "mod": torch.remainder, "min": torch.minimum, "max": torch.maximum, "pow": torch.pow, "lt": torch.lt,
           "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
           "logical_and": torch.logical_and, "logical_or": torch.logical_or}
    values = []
    for op, *rest in table["nodes"]:
        if op in pair:
            value = pair[op]
        elif op == "scale":
            value = torch.ones((), dtype=s.dtype)  # s is scaled already
        elif op == "dot":
            value = s
        elif op == "constant":
            value = torch.tensor(float(rest[0]) if rest[1] == "float" else rest[0], dtype=types[rest[1]])
        elif op == "capture":
            tensor = captures[rest[0]]
            value = tensor[tuple(values[n] for n in rest[2:])] if len(rest) > 2 else tensor
            value = value.to(types[rest[1]])
        elif op == "cast":
            value = values[rest[0]].to(types[rest[1]])
        elif op == "where":
            value = torch.where(*(values[n] for n in rest))
        elif op == "div":
            value = values[rest[0]].to(s.dtype) / values[rest[1]].to(s.dtype)
        elif op in one:
            value = one[op](values[rest[0]])
        else:
            value = two[op](values[rest[0]], values[rest[1]])
        values.append(value)
    return values
