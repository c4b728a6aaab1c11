"""What torch's functions and methods mean on traced Values: the table of them, and reading captured tensors.

Each entry of `TABLE` is called as f(graph, *args, **kwargs) with the user's arguments and returns a Value. The entries
are in arithmetic.py, logic.py and casts.py; operators.py gives Value Python's operators.
"""

from __future__ import annotations

import torch

from .errors import suggestion
from .expr import INT, Graph, PartialIndex, Value, type_of_dtype

TABLE: dict = {}


def names() -> list[str]:
    return [name for name in TABLE if not name.startswith("_")]


def method(name: str):
    return TABLE.get(name)


def entry_for(*aliases: str):
    """Decorates what the functions and methods of these names do."""
    def register(function):
        for name in aliases:
            TABLE[name] = function
        return function

    return register


def graph_of(arguments) -> Graph | None:
    for argument in arguments:
        if isinstance(argument, (Value, PartialIndex)):
            return argument._graph
        if isinstance(argument, (tuple, list)):
            graph = graph_of(argument)
            if graph is not None:
                return graph
    return None


def dispatch(func, args: tuple, kwargs: dict):
    """A torch function with a Value among its arguments."""
    graph = graph_of(args) or graph_of(kwargs.values())
    name = getattr(func, "__name__", str(func))
    entry = TABLE.get(name)
    if entry is None:
        raise graph.error("operations that an expression knows (arithmetic, comparisons, where, min, max, abs, floor, "
                          f"exp, log, tanh, sigmoid, sqrt, pow, cos, sin){suggestion(name, names())}",
                          f"torch function {name} of a traced value")
    try:
        return entry(graph, *args, **kwargs)
    except TypeError as error:
        raise graph.error(f"arguments that {name} takes on traced values", str(error)) from error


# ---- reading captured tensors ------------------------------------------------------------------------------------


@entry_for("__getitem__")
def _getitem(graph, tensor, index):
    return read(graph, tensor, index if isinstance(index, tuple) else (index,))


def read(graph: Graph, tensor: torch.Tensor, indices: tuple):
    """tensor[indices], one index an axis; a PartialIndex while axes are left."""
    if not isinstance(tensor, torch.Tensor):
        raise graph.error("a captured torch.Tensor where something is indexed", f"{type(tensor).__name__}")
    if len(indices) > tensor.dim():
        raise graph.error(f"at most {tensor.dim()} indices into a tensor of shape {tuple(tensor.shape)}",
                          f"{len(indices)}")
    for axis, index in enumerate(indices):
        _check_index(graph, tensor, axis, index)
    if len(indices) < tensor.dim():
        return PartialIndex(graph, tensor, indices)
    values = []
    for axis, index in enumerate(indices):
        if isinstance(index, int) and index < 0:
            index = tensor.shape[axis] + index
        values.append(graph.lift(index))
    return graph.capture(tensor, tuple(values))


def _check_index(graph: Graph, tensor: torch.Tensor, axis: int, index) -> None:
    if isinstance(index, (slice, type(None), type(Ellipsis), list)):
        raise graph.error("one integer index an axis (take slices outside of the function)", f"the index {index!r}")
    if isinstance(index, int) and not isinstance(index, bool):
        size = tensor.shape[axis]
        if not -size <= index < size:
            raise graph.error(f"an index in [-{size}, {size}) on axis {axis}", f"{index}")
        return
    kind = index._type if isinstance(index, Value) else type_of_dtype(index.dtype) if isinstance(
        index, torch.Tensor) else INT
    if kind != INT:
        raise graph.error(f"integer indices (write .int() to cut a float); axis {axis}", f"an index of type {kind}")


@entry_for("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
def _assign(graph, *_):
    raise graph.error("functions that write nothing", "a traced value written into a tensor")
