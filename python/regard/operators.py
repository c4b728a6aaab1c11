"""Python's operators on traced Values, and the reversed ones that torch.Tensor hands on."""

from __future__ import annotations

from .arithmetic import ceil, floor, trunc, where
from .expr import INT, Value, cast
from .functions import TABLE
from . import casts, logic  # noqa: F401  fill the table


def _operator(name: str, reverse: bool):
    entry = TABLE[f"__{name}__"]
    if reverse:
        return lambda self, other: entry(self._graph, other, self)
    return lambda self, other: entry(self._graph, self, other)


for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(Value, f"__{_name}__", _operator(_name, False))
    setattr(Value, f"__r{_name}__", _operator(_name, True))
    # Tensor op Value arrives as torch.Tensor.__rsub__ and the like.
    TABLE[f"__r{_name}__"] = (lambda entry: lambda graph, a, b: entry(graph, b, a))(TABLE[f"__{_name}__"])
TABLE["rsub"] = TABLE["__rsub__"]
TABLE["__rdiv__"] = TABLE["__rtruediv__"]
for _name in "lt le gt ge eq ne".split():
    setattr(Value, f"__{_name}__", _operator(_name, False))
for _name in "neg pos abs invert".split():
    setattr(Value, f"__{_name}__", (lambda entry: lambda self: entry(self._graph, self))(TABLE[f"__{_name}__"]))
Value.__floor__ = lambda self: cast(floor(self._graph, self), INT)
Value.__ceil__ = lambda self: cast(ceil(self._graph, self), INT)
Value.__trunc__ = lambda self: cast(trunc(self._graph, self), INT)
# `x.where(condition, other)` has its operands in another order than torch.where.
Value.where = lambda self, condition, other: where(self._graph, condition, self, other)
