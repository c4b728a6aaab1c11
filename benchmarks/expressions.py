"""The expressions of the cases, each written once: FlexAttention, Regard and the composite read the same functions."""

from __future__ import annotations

import dataclasses
import random
from typing import Callable

import torch

WINDOW = 256
BLOCK = 128  # of FlexAttention's block masks; also the blocks that a window's cost is counted in


@dataclasses.dataclass(frozen=True)
class Expression:
    """score(s, b, h, i, j) and mask(b, h, i, j), either may be None."""

    score: Callable | None = None
    mask: Callable | None = None


def causal(b, h, i, j):
    return i >= j


def make(name: str, heads: int, keys: int) -> Expression:
    """The expression `name` for so many heads and keys; "" has neither score nor mask."""
    if name == "":
        return Expression()
    if name in ("alibi", "alibi-causal"):
        slopes = torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])
        return Expression(lambda s, b, h, i, j: s + slopes[h] * (j - i), causal if name == "alibi-causal" else None)
    if name == "softcap":
        return Expression(lambda s, b, h, i, j: 20 * torch.tanh(s / 20))
    if name == "relative-bias":
        table = torch.randn(heads, 2 * keys - 1, generator=torch.Generator().manual_seed(5)) * 0.1
        return Expression(lambda s, b, h, i, j: s + table[h, i - j + (keys - 1)])
    if name == "window":
        return Expression(mask=lambda b, h, i, j: (i >= j) & (i - j < WINDOW))
    if name == "documents":
        document = _documents(keys)
        return Expression(mask=lambda b, h, i, j: document[i] == document[j])
    raise ValueError(f"[expressions] expected a known name; found {name!r}")


def _documents(keys: int, count: int = 8) -> torch.Tensor:
    """(N) the document of each token: `count` of them, of lengths that differ and fit no tile."""
    rng = random.Random(7)
    bounds = sorted(rng.sample(range(1, keys), min(count, keys) - 1))
    document = torch.zeros(keys, dtype=torch.int64)
    for bound in bounds:
        document[bound:] += 1
    return document


def dense_mask(expression: Expression, is_causal: bool, queries: int, keys: int) -> torch.Tensor | None:
    """(M, N) bool of the pairs that exist; None when all do. (The masks here depend on neither batch nor head.)"""
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    kept = None
    if expression.mask is not None:
        kept = expression.mask(0, 0, i, j)
    if is_causal:
        kept = (i >= j) if kept is None else kept & (i >= j)
    return kept


def count(expression: Expression, is_causal: bool, queries: int, keys: int) -> tuple[int, float]:
    """(pairs that exist, share of BLOCK x BLOCK blocks that hold one), a block of rows at a time."""
    j = torch.arange(keys)[None, :]
    if expression.mask is None and not is_causal:
        return queries * keys, 1.0
    pairs = blocks = rows = 0
    for first in range(0, queries, BLOCK):
        i = torch.arange(first, min(first + BLOCK, queries))[:, None]
        kept = torch.ones(len(i), keys, dtype=torch.bool)
        if expression.mask is not None:
            kept &= expression.mask(0, 0, i, j)
        if is_causal:
            kept &= i >= j
        pairs += int(kept.sum())
        blocks += int(torch.nn.functional.pad(kept, (0, -keys % BLOCK)).view(len(i), -1, BLOCK).any(2).any(0).sum())
        rows += 1
    return pairs, blocks / (rows * -(-keys // BLOCK))
