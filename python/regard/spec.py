"""`Spec`: a mechanism's attention as data."""

from __future__ import annotations

import json

import torch

from .errors import fail
from .explanation import Explanation
from .trace import _operands, trace

__all__ = ["Spec"]


class Spec:
    """s = score, w = normalizer(s) * weight * [keep], o_i = sum_j w_ij v_j, with every part a function or a default.

    Made from functions, ``Spec(score=..., mask=...)``, with the arguments of `regard.attention`, or from the JSON of
    another spec, ``Spec.from_json(text, captures={...})``. It can be printed, stored, compared and hashed, and given to
    `regard.attention(q, k, v, spec=spec)` as often as wanted: nothing is traced again.

    Attributes: ``json`` (text), ``captures`` (dict of the tensors that the functions read), ``operands`` (sorted names
    of the extra operand pairs that a call must bring).
    """

    __slots__ = ("json", "captures", "operands", "settings", "table")

    def __init__(self, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(), normalizer="softmax",
                 sinks=False, scale=None, dropout=0.0, is_causal=False, device=None):
        traced = trace("Spec", score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                       normalizer=normalizer, sinks=bool(sinks), scale=scale, dropout=dropout, is_causal=is_causal,
                       device=device)
        self._fill(traced.json, traced.captures)

    @classmethod
    def from_json(cls, text, captures=None) -> "Spec":
        """The spec of a JSON text or dict; `captures` names the tensors that it reads."""
        if isinstance(text, dict):
            text = json.dumps(text)
        if not isinstance(text, str):
            fail("Spec", "a JSON text or a dict", type(text).__name__)
        torch.ops.regard.explain(text)  # parses and checks it, so that a bad spec is refused here
        spec = object.__new__(cls)
        spec._fill(text, dict(captures or {}))
        return spec

    def _fill(self, text: str, captures: dict) -> None:
        table = json.loads(text)
        names, operands = names_read(table)
        normalizer = table.get("normalizer", {})
        if isinstance(normalizer, str):  # its kind alone
            normalizer = {"kind": normalizer}
        self.json, self.table, self.captures, self.operands = text, table, captures, operands
        # What a call needs to know of a spec without parsing it again.
        self.settings = {
            "captures": names,
            "sinks": bool(normalizer.get("sinks", False)),
            "dropout": float(table.get("dropout", 0.0)),
            "normalizer": normalizer.get("kind", "softmax"),
            "pairs": bool(table.get("pair_outputs")),
            "weight": "weight" in table,
        }

    def explain(self, shape=None, dtype: str = "float32"):
        """The spec in formulas, and for each faster path that refuses it the reason.

        With `shape`, (B, H, M, N, Dh[, Dv[, Hk]]): the `Explanation` of a call of these sizes on random inputs (the
        captures too: integers are drawn from [0, N)). `regard.attention(..., explain=True)` explains a given call.
        """
        if shape is None:
            return torch.ops.regard.explain(self.json)
        if not isinstance(shape, (tuple, list)):
            fail("Spec.explain", "shape to be (B, H, M, N, Dh[, Dv[, Hk]])", type(shape).__name__)
        sizes = ",".join(str(size) for size in shape)
        return Explanation(torch.ops.regard.explain_shape(self.json, sizes, str(dtype).removeprefix("torch.")))

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        return f"Spec({self.json})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Spec) and json.loads(self.json) == json.loads(other.json)

    def __hash__(self) -> int:
        return hash(json.dumps(json.loads(self.json), sort_keys=True))

    def __reduce__(self):
        return _load, (self.json, self.captures)


def _load(text: str, captures: dict) -> Spec:
    return Spec.from_json(text, captures)


def names_read(table: dict) -> tuple[list[str], list[str]]:
    """Sorted names of the captures and of the operand pairs that the roots of a spec read."""
    nodes = table.get("nodes", [])
    roots = [table[key] for key in ("score", "keep", "weight", "counted") if key in table]
    for output in table.get("pair_outputs", []):
        roots += [output[key] for key in ("value", "bucket") if isinstance(output.get(key), int)]
    captures, operands, seen = set(), set(), set()
    while roots:
        number = roots.pop()
        if number in seen or not isinstance(number, int) or not 0 <= number < len(nodes):
            continue
        seen.add(number)
        node = nodes[number]
        if node[0] == "capture":
            captures.add(node[1])
        elif node[0] == "dot" and len(node) > 1 and node[1]:
            operands.add(node[1])
        roots += [node[position] for position in _operands(tuple(node))]
    for side in table.get("positions", {}).values():
        if side.get("tensor"):
            captures.add(side["tensor"])
    return sorted(captures), sorted(operands)
