"""Casts, constants made of a Value's type, and what a scalar tensor would say of itself."""

from __future__ import annotations

import torch

from .expr import BOOL, FLOAT, INT, Value, cast, type_of_dtype
from .functions import TABLE, entry_for


def _cast_to(kind: str):
    return lambda graph, a, *_, **__: cast(graph.lift(a), kind)


for _names_, _type in (("float double half bfloat16", FLOAT), ("int long short", INT), ("bool", BOOL)):
    for _name in _names_.split():
        TABLE[_name] = _cast_to(_type)


@entry_for("to", "type", "type_as")
def _to(graph, a, *args, dtype=None, **_):
    """a.to(dtype), a.to(other), a.to(device): the device changes nothing, the width of a type neither."""
    a = graph.lift(a)
    for argument in (*args, dtype):
        if isinstance(argument, Value):
            return cast(a, argument._type)
        if isinstance(argument, torch.Tensor):
            argument = argument.dtype
        if isinstance(argument, torch.dtype):
            kind = type_of_dtype(argument)
            if kind is None:
                raise graph.error("a real, integer or boolean dtype", f"{argument}")
            return cast(a, kind)
    return a


def _filled(graph, a, number, dtype):
    a = graph.lift(a)
    kind = type_of_dtype(dtype) if dtype is not None else a._type
    return graph.constant({BOOL: bool, INT: int, FLOAT: float}[kind](number), kind)


def _new(number):
    def apply(graph, a, size=(), *, dtype=None, **_):
        if tuple(size if isinstance(size, (tuple, list)) else (size,)) != ():
            raise graph.error("scalars, size=()", f"size={size}")
        return _filled(graph, a, number, dtype)

    return apply


TABLE["new_ones"], TABLE["new_zeros"] = _new(1), _new(0)
TABLE["ones_like"] = lambda graph, a, *, dtype=None, **_: _filled(graph, a, 1, dtype)
TABLE["zeros_like"] = lambda graph, a, *, dtype=None, **_: _filled(graph, a, 0, dtype)
TABLE["full_like"] = lambda graph, a, fill_value, *, dtype=None, **_: _filled(graph, a, fill_value, dtype)
TABLE["new_full"] = lambda graph, a, size, fill_value, *, dtype=None, **_: _filled(graph, a, fill_value, dtype)
TABLE["new_tensor"] = lambda graph, a, data, *, dtype=None, **_: _filled(graph, a, data, dtype)
TABLE["dim"] = lambda graph, a: 0
TABLE["numel"] = lambda graph, a: 1
TABLE["size"] = lambda graph, a: torch.Size([])


@entry_for("item", "tolist", "numpy", "__array__")
def _item(graph, *_, **__):
    raise graph.error("the value itself in place of .item()", "a Python number asked of a traced value")


@entry_for("detach")
def _detach(graph, *_):
    raise graph.error("expressions that are differentiated whole (detach captured tensors outside of the function)",
                      "detach() of a traced value")
