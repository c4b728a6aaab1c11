"""The tensors of a case, and what its call computes and reads."""

from __future__ import annotations

import dataclasses
import functools

import torch

from . import expressions, machine
from .cases import Case


@dataclasses.dataclass
class Inputs:
    """sets: one (q, k, v) or several to rotate over; do (B, H, M, Dv) the gradient of the output."""

    sets: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    do: torch.Tensor
    expression: expressions.Expression
    pairs: int  # per batch entry and head
    kept_blocks: float

    def rotated(self, call):
        """call(q, k, v) of the next set each time; under autograd the gradients of q, k, v too."""
        position = -1

        def run():
            nonlocal position
            position = (position + 1) % len(self.sets)
            return call(*self.sets[position])

        return run


def make(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    dtype = getattr(torch, case.dtype)

    def tensor(heads, length, width):
        x = torch.randn(case.B, heads, length, width, generator=generator).to(dtype)
        return x.requires_grad_(case.mode == "both")

    expression = expressions.make(case.expression, case.H, case.N)
    first = (tensor(case.H, case.M, case.Dh), tensor(case.Hk, case.N, case.Dh), tensor(case.Hk, case.N, case.Dv))
    copies = [tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in first)
              for _ in range(_set_count(case) - 1)]
    sets = [first, *copies]
    do = torch.randn(case.B, case.H, case.M, case.Dv, generator=generator).to(dtype)
    return Inputs(sets, do, expression, *_count(case.expression, case.H, case.causal, case.M, case.N))


@functools.lru_cache
def _count(name: str, heads: int, causal: bool, queries: int, keys: int) -> tuple[int, float]:
    return expressions.count(expressions.make(name, heads, keys), causal, queries, keys)


def _set_count(case: Case) -> int:
    """As many as exceed the last-level cache by half, within a third of the free memory."""
    if not case.rotate:
        return 1
    wanted = machine.last_level_cache() * 3 / 2
    room = machine.free_memory() / 3
    return max(2, int(min(wanted // key_value_bytes(case) + 1, room // key_value_bytes(case))))


def key_value_bytes(case: Case) -> int:
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    return case.B * case.Hk * case.N * (case.Dh + case.Dv) * size


def flops(case: Case, pairs: int) -> float:
    """2 (Dh + Dv) a pair forward, 2 (3 Dh + 2 Dv) more backward; only pairs that exist count."""
    per_pair = 2 * (case.Dh + case.Dv) + (2 * (3 * case.Dh + 2 * case.Dv) if case.mode == "both" else 0)
    return float(per_pair) * pairs * case.B * case.H


def bytes_read(case: Case) -> int:
    """Keys, values and queries once, the output once."""
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    return key_value_bytes(case) + case.B * case.H * case.M * (case.Dh + case.Dv) * size
