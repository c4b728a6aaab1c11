"""`Edit`: a change of an attention inside a module, without touching the module."""

from __future__ import annotations

import itertools
import weakref

import torch

from .errors import fail
from .expr import BOOL, FLOAT, Graph, _active
from .trace import _prune, _run, _run_any, json_text

__all__ = ["Edit"]

_SCORE = "score"  # the capture that stands for the score before the edit
_functions: "weakref.WeakValueDictionary[int, _Functions]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Edit:
    """A change of the attention inside a mechanism, given to a call: ``module(x, edits=[Edit(...)])``.

        operands  ->  score, mask  ->  normalizer  ->  weight  ->  head_scale  ->  after  ->  o = W v

    Several edits act in their order in each of these places. Nothing is kept in the module: the next call is its own.

    Args:
        score: function (s, b, h, i, j) of the score s before; what it returns takes its place.
        mask: function (b, h, i, j); pairs where it is False do not exist, beside those that the mechanism hides.
        weight: function (b, h, i, j) or (s, b, h, i, j), multiplied onto the normalized weight.
        head_scale: (H) or (B, H) tensor, or a list of numbers, multiplied onto the weights of each head; 0 removes it.
        operands: function (q, k, v) -> (q, k, v), what the attention reads: (B, H, M, Dh), (B, Hk, N, Dh),
            (B, Hk, N, Dv); with `tensors` also (q, k, v, **tensors).
        after: function (weights, rows) -> weights, given the normalized weights (B, H, m, N) of m queries at a time and
            their indices (m), int64; with `tensors` also (weights, rows, **tensors). Runs in stripes and may run twice.
        tensors: dict of tensors that `operands` and `after` read. `after` must not read others that need a gradient.
        attention: which attention of the mechanism, in the order in which they run; default every one.
        layer: of a host, which layer ("blocks.3.attn"), '*' standing for any text; default every one.

    score, mask and weight are traced as those of `regard.attention`: i and j are positions, tensors that they read get
    gradients. An edit that reaches no attention is an error.
    """

    def __init__(self, *, score=None, mask=None, weight=None, head_scale=None, operands=None, after=None, tensors=None,
                 attention=None, layer=""):
        given = {"score": score, "mask": mask, "weight": weight, "operands": operands, "after": after}
        if all(function is None for function in given.values()) and head_scale is None:
            fail("Edit", "at least one of score, mask, weight, head_scale, operands, after", "none")
        for name, function in given.items():
            if function is not None and not callable(function):
                fail("Edit", f"{name} to be a function", type(function).__name__)
        if attention is not None and (isinstance(attention, bool) or not isinstance(attention, int) or attention < 0):
            fail("Edit", "attention to be the number of one, 0 the first", repr(attention))
        if not isinstance(layer, str):
            fail("Edit", "layer to be a name", type(layer).__name__)
        self.tensors = _tensors(tensors, operands is not None or after is not None)
        self.head_scale = _head_scale(head_scale)
        self.score, self.mask, self.weight, self.operands, self.after = score, mask, weight, operands, after
        self.attention, self.layer = attention, layer
        self._kept = None
        if operands is not None or after is not None:
            self._kept = _Functions(operands, after, list(self.tensors))

    def for_layer(self, layer: str) -> "Edit":
        """The same edit under another layer's name: what a container hands to the module inside it."""
        other = object.__new__(Edit)
        other.__dict__.update(self.__dict__)
        other.layer = layer
        return other

    def __repr__(self) -> str:
        parts = [name for name in ("operands", "score", "mask", "weight", "head_scale", "after")
                 if getattr(self, name) is not None]
        where = f", layer={self.layer!r}" if self.layer else ""
        which = f", attention={self.attention}" if self.attention is not None else ""
        return f"Edit({', '.join(parts)}{which}{where})"

    def _traced(self, number: int, device) -> tuple[dict | None, dict]:
        """The table of nodes of score, mask and weight, and their captures under the names of the edit's place."""
        if self.score is None and self.mask is None and self.weight is None:
            return None, {}
        graph = Graph("Edit", device)
        before, _active.graph = _active.graph, graph
        table = {}
        try:
            pair = [graph.leaf(op) for op in ("batch", "head", "query", "key")]
            score = graph.add(FLOAT, "capture", _SCORE, FLOAT)
            if self.score is not None:
                table["score"] = _run(graph, "score", self.score, [score, *pair], FLOAT)
            if self.mask is not None:
                table["keep"] = _run(graph, "mask", self.mask, pair, BOOL)
            if self.weight is not None:
                table["weight"] = _run_any(graph, "weight", self.weight, score, pair, FLOAT)
        finally:
            _active.graph = before
        nodes, table = _prune(graph, table)
        captures = {}
        for node in nodes:
            if node[0] == "capture" and node[1] != _SCORE:
                captures[node[1]] = graph.captures[node[1]]
                node[1] = f"edit{number}_{node[1]}"
        return {"nodes": nodes, **table}, captures


class _Functions:
    """The Python functions of one edit; a graph that will run them again holds it through a token."""

    def __init__(self, operands, after, names: list[str]):
        self.operands, self.after, self.names = operands, after, names
        self.number = next(_numbers)
        _functions[self.number] = self

    def token(self) -> torch.Tensor:
        """A tensor that keeps this object alive as long as anything, C++ included, holds the tensor."""
        token = torch.zeros(())
        token._regard_edit = self
        return token


def _tensors(tensors, functions: bool) -> dict:
    if tensors is None:
        return {}
    if not isinstance(tensors, dict):
        fail("Edit", "tensors to be a dict of tensors by name", type(tensors).__name__)
    if not functions:
        fail("Edit", "tensors beside operands or after, which read them (score, mask and weight bring their own)",
             "tensors alone")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isidentifier() or name in ("token", "head_scale"):
            fail("Edit", "names of tensors to be identifiers other than token and head_scale", repr(name))
        if not isinstance(tensor, torch.Tensor):
            fail("Edit", f"tensors['{name}'] to be a tensor", type(tensor).__name__)
    return dict(tensors)


def _head_scale(head_scale):
    if head_scale is None or isinstance(head_scale, torch.Tensor):
        return head_scale
    try:
        return torch.tensor(head_scale, dtype=torch.float64)
    except (TypeError, ValueError):
        fail("Edit", "head_scale (H) or (B, H): a tensor or a list of numbers", type(head_scale).__name__)


def _found(number: int) -> _Functions:
    functions = _functions.get(number)
    if functions is None:
        fail("Edit", "the edit whose function a graph calls", "one that is gone")
    return functions


def _call_operands(function, q, k, v, tensors):
    edit = _found(function)
    result = edit.operands(q, k, v, **dict(zip(edit.names, tensors)))
    three = isinstance(result, (tuple, list)) and len(result) == 3
    if not three or not all(isinstance(t, torch.Tensor) for t in result):
        fail("Edit", "operands to return (q, k, v)", type(result).__name__)
    return list(result)


def _call_weights(function, weights, rows, tensors):
    edit = _found(function)
    result = edit.after(weights, rows, **dict(zip(edit.names, tensors)))
    if not isinstance(result, torch.Tensor):
        fail("Edit", "after to return the weights", type(result).__name__)
    return result.clone() if result is weights else result  # an op must not return its argument


def _register() -> torch.library.Library:
    """The ops by which C++ calls an edit's functions; the table behind them keeps none alive."""
    library = torch.library.Library("regard_python", "DEF")
    library.define("edit_operands(int function, Tensor q, Tensor k, Tensor v, Tensor[] tensors) -> Tensor[]")
    library.define("edit_weights(int function, Tensor weights, Tensor rows, Tensor[] tensors) -> Tensor")
    for key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):  # vmap asks for a rule of its own
        library.impl("edit_operands", _call_operands, key)
        library.impl("edit_weights", _call_weights, key)
    return library


_library = _register()


def pack(function: str, edits, x: torch.Tensor) -> tuple[str, dict]:
    """A list of edits as the op takes it: its JSON, and the tensors by the names of inputs."""
    if isinstance(edits, Edit):
        edits = [edits]
    if not isinstance(edits, (tuple, list)):
        fail(function, "edits to be a list of regard.Edit", type(edits).__name__)
    listed, inputs = [], {}
    for number, edit in enumerate(edits):
        if not isinstance(edit, Edit):
            fail(function, "edits to be a list of regard.Edit", f"an entry of type {type(edit).__name__}")
        entry: dict = {"attention": -1 if edit.attention is None else edit.attention, "layer": edit.layer}
        table, captures = edit._traced(number, x.device)
        if table is not None:
            entry["spec"] = table
        if edit.head_scale is not None:
            captures["head_scale"] = _real_like(edit.head_scale, x)
        for name in edit.tensors:
            if name in captures:
                fail(function, "names of an edit's tensors other than those of its captures", f"'{name}'")
        captures.update(edit.tensors)
        if edit._kept is not None:
            captures["token"] = edit._kept.token()
            entry.update(tensors=edit._kept.names)
            entry.update({name: edit._kept.number for name in ("operands", "after") if getattr(edit, name) is not None})
        listed.append(entry)
        inputs.update({f"edit.{number}.{name}": tensor for name, tensor in captures.items()})
    return (json_text(listed) if listed else ""), inputs


def _real_like(head_scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return head_scale if head_scale.requires_grad else head_scale.to(device=x.device)
