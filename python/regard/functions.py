"""What torch's functions, methods and Python's operators mean on traced Values.

Each entry of `_TABLE` is called as f(graph, *args, **kwargs) with the user's arguments and returns a Value. Where an
expression has no node of its own the function is composed of nodes so that value and derivative are torch's: clamp
passes the gradient on its bounds, relu'(0) = 0.
"""

from __future__ import annotations

import math

import torch

from .errors import suggestion
from .expr import BOOL, FLOAT, INT, Graph, PartialIndex, Value, cast, promote, type_of_dtype

_TABLE: dict = {}


def names() -> list[str]:
    return [name for name in _TABLE if not name.startswith("_")]


def method(name: str):
    return _TABLE.get(name)


def _entry(*aliases: str):
    def register(function):
        for name in aliases:
            _TABLE[name] = function
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
    entry = _TABLE.get(name)
    if entry is None:
        raise graph.error("operations that an expression knows (arithmetic, comparisons, where, min, max, abs, floor, "
                          f"exp, log, tanh, sigmoid, sqrt, pow, cos, sin){suggestion(name, names())}",
                          f"torch function {name} of a traced value")
    try:
        return entry(graph, *args, **kwargs)
    except TypeError as error:
        raise graph.error(f"arguments that {name} takes on traced values", str(error)) from error


# ---- reading captured tensors ------------------------------------------------------------------------------------


@_entry("__getitem__")
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


@_entry("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
def _assign(graph, *_):
    raise graph.error("functions that write nothing", "a traced value written into a tensor")


# ---- arithmetic --------------------------------------------------------------------------------------------------


def _number(graph: Graph, a, b, op: str):
    """Both as Values; booleans take part in arithmetic as torch's do, except where torch refuses too."""
    a, b = graph.lift(a), graph.lift(b)
    if a._type == b._type == BOOL:
        if op == "sub":
            raise graph.error("`a & ~b` or `a ^ b` on booleans", "booleans subtracted")
        a, b = cast(a, INT), cast(b, INT)
    return a, b


def _binary(op: str):
    def apply(graph, a, b):
        a, b = _number(graph, a, b, op)
        return graph.add(promote(a, b), op, a, b)

    return apply


@_entry("add", "__add__")
def _add(graph, a, b, *, alpha=1):
    b = b if alpha == 1 else _TABLE["mul"](graph, b, alpha)
    a, b = graph.lift(a), graph.lift(b)
    if a._type == b._type == BOOL:
        return graph.add(BOOL, "logical_or", a, b)
    return graph.add(promote(a, b), "add", a, b)


@_entry("sub", "subtract", "__sub__")
def _sub(graph, a, b, *, alpha=1):
    b = b if alpha == 1 else _TABLE["mul"](graph, b, alpha)
    a, b = _number(graph, a, b, "sub")
    return graph.add(promote(a, b), "sub", a, b)


@_entry("mul", "multiply", "__mul__")
def _mul(graph, a, b):
    a, b = graph.lift(a), graph.lift(b)
    if a._type == b._type == BOOL:
        return graph.add(BOOL, "logical_and", a, b)
    return graph.add(promote(a, b), "mul", a, b)


@_entry("div", "divide", "true_divide", "__truediv__", "__div__")
def _div(graph, a, b, *, rounding_mode=None):
    a, b = _number(graph, a, b, "div")
    if rounding_mode == "floor":
        return graph.add(promote(a, b), "floor_div", a, b)
    quotient = graph.add(FLOAT, "div", a, b)
    if rounding_mode == "trunc":
        return cast(_trunc(graph, quotient), promote(a, b))
    return quotient


_TABLE["floor_divide"] = _TABLE["__floordiv__"] = _binary("floor_div")
_TABLE["remainder"] = _TABLE["__mod__"] = _binary("mod")


@_entry("pow", "__pow__", "float_power")
def _pow(graph, a, b):
    exponent = b if isinstance(b, (int, float)) and not isinstance(b, bool) else None
    a = graph.lift(a)
    if exponent in (1, 2, 3) and (isinstance(exponent, int) or a._type == FLOAT):
        a = cast(a, INT) if a._type == BOOL else a
        result = a
        for _ in range(int(exponent) - 1):
            result = graph.add(a._type, "mul", result, a)
        return result
    if exponent == 0.5:
        return graph.add(FLOAT, "sqrt", cast(a, FLOAT))
    b = graph.lift(b)
    kind = promote(a, b)
    power = graph.add(FLOAT, "pow", cast(a, FLOAT), cast(b, FLOAT))
    return power if kind == FLOAT else cast(power, INT)


@_entry("neg", "negative", "__neg__")
def _neg(graph, a):
    a = graph.lift(a)
    if a._type == BOOL:
        raise graph.error("`~a` on a boolean", "a boolean negated with minus")
    return graph.add(a._type, "neg", a)


@_entry("positive", "__pos__", "clone", "contiguous")
def _same(graph, a, **_):
    return graph.lift(a)


@_entry("abs", "absolute", "__abs__")
def _abs(graph, a):
    a = graph.lift(a)
    return graph.add(a._type, "abs", a) if a._type != BOOL else a


@_entry("floor")
def _floor(graph, a):
    a = graph.lift(a)
    return graph.add(FLOAT, "floor", a) if a._type == FLOAT else a


@_entry("ceil")
def _ceil(graph, a):
    a = graph.lift(a)
    return _neg(graph, _floor(graph, _neg(graph, a))) if a._type == FLOAT else a


@_entry("trunc", "fix")
def _trunc(graph, a):
    a = graph.lift(a)
    return a if a._type != FLOAT else _where(graph, _TABLE["lt"](graph, a, 0.0), _ceil(graph, a), _floor(graph, a))


def _real(op: str):
    def apply(graph, a):
        return graph.add(FLOAT, op, cast(graph.lift(a), FLOAT))

    return apply


for _op in ("exp", "log", "tanh", "sigmoid", "sqrt", "cos", "sin"):
    _TABLE[_op] = _real(_op)
_TABLE["expit"] = _TABLE["special_expit"] = _TABLE["sigmoid"]


def _composed(f):
    return lambda graph, a: f(cast(graph.lift(a), FLOAT))


_TABLE["square"] = lambda graph, a: _mul(graph, a, a)
_TABLE["rsqrt"] = _composed(lambda a: 1.0 / a.sqrt())
_TABLE["reciprocal"] = _composed(lambda a: 1.0 / a)
_TABLE["exp2"] = _composed(lambda a: (a * math.log(2.0)).exp())
_TABLE["log2"] = _composed(lambda a: a.log() * (1.0 / math.log(2.0)))
_TABLE["log10"] = _composed(lambda a: a.log() * (1.0 / math.log(10.0)))
_TABLE["tan"] = _composed(lambda a: a.sin() / a.cos())
_TABLE["silu"] = lambda graph, a, inplace=False: _mul(graph, a, _TABLE["sigmoid"](graph, a))
_TABLE["relu"] = lambda graph, a, inplace=False: _where(graph, _TABLE["gt"](graph, a, 0), a, 0)
_TABLE["sign"] = lambda graph, a: _where(graph, _TABLE["gt"](graph, a, 0), 1, _where(
    graph, _TABLE["lt"](graph, a, 0), -1, 0)).to(graph.lift(a).dtype)


# ---- order -------------------------------------------------------------------------------------------------------


def _pair(graph, a, b):
    a, b = graph.lift(a), graph.lift(b)
    kind = promote(a, b)
    return cast(a, kind), cast(b, kind), kind


def _extremum(op: str):
    def apply(graph, a, b=None, *, other=None):
        b = other if b is None else b
        if b is None:
            raise graph.error(f"two arguments of {op}", "a reduction of a traced value, which is one number")
        a, b, kind = _pair(graph, a, b)
        if kind == BOOL:
            return graph.add(BOOL, "logical_and" if op == "min" else "logical_or", a, b)
        return graph.add(kind, op, a, b)

    return apply


for _op in ("min", "max"):
    _TABLE[_op] = _TABLE[f"{_op}imum"] = _extremum(_op)


@_entry("clamp", "clip")
def _clamp(graph, a, min=None, max=None):
    if min is None and max is None:
        raise graph.error("a bound for clamp", "none")
    a = graph.lift(a)
    for bound, op, beyond in ((min, "max", "lt"), (max, "min", "gt")):
        if bound is None:
            continue
        a, bound, kind = _pair(graph, a, bound)
        # Integers keep min and max, whose bounds interval analysis knows; reals take torch's derivative on a bound.
        a = graph.add(kind, op, a, bound) if kind == INT else _where(graph, _TABLE[beyond](graph, a, bound), bound, a)
    return a


_TABLE["clamp_min"] = lambda graph, a, min: _clamp(graph, a, min=min)
_TABLE["clamp_max"] = lambda graph, a, max: _clamp(graph, a, max=max)


def _compare(op: str):
    def apply(graph, a, b):
        a, b, _ = _pair(graph, a, b)
        return graph.add(BOOL, op, a, b)

    return apply


for _op, _long in (("lt", "less"), ("le", "less_equal"), ("gt", "greater"), ("ge", "greater_equal"),
                   ("ne", "not_equal"), ("eq", "eq")):
    _TABLE[_op] = _TABLE[_long] = _TABLE[f"__{_op}__"] = _compare(_op)


# ---- logic -------------------------------------------------------------------------------------------------------


def _truth(graph, a) -> Value:
    a = graph.lift(a)
    return a if a._type == BOOL else graph.add(BOOL, "ne", a, cast(graph.constant(0), a._type))


def _logical(op: str):
    neutral = op == "logical_and"  # x & True = x, x | False = x

    def combine(graph, a, b):
        for one, two in ((a, b), (b, a)):
            node = graph.nodes[one._node]
            if node[0] == "constant" and node[1] is neutral:
                return two
        return graph.add(BOOL, op, a, b)

    def apply(graph, a, b):
        return combine(graph, _truth(graph, a), _truth(graph, b))

    def bitwise(graph, a, b):
        a, b = graph.lift(a), graph.lift(b)
        for value in (a, b):
            if value._type != BOOL:
                hint = "% and // on integers (i % 2 for i & 1)" if value._type == INT else "a comparison"
                raise graph.error(f"booleans under &, | and ^; {hint}", f"an operand of type {value._type}")
        return combine(graph, a, b)

    return apply, bitwise


_TABLE["logical_and"], _TABLE["bitwise_and"] = _logical("logical_and")
_TABLE["logical_or"], _TABLE["bitwise_or"] = _logical("logical_or")
_TABLE["__and__"], _TABLE["__or__"] = _TABLE["bitwise_and"], _TABLE["bitwise_or"]


@_entry("logical_xor", "bitwise_xor", "__xor__")
def _xor(graph, a, b):
    a, b = graph.lift(a), graph.lift(b)
    if a._type != BOOL or b._type != BOOL:
        raise graph.error("booleans under &, | and ^", f"operands of type {a._type} and {b._type}")
    return graph.add(BOOL, "ne", a, b)


@_entry("logical_not")
def _logical_not(graph, a):
    return graph.add(BOOL, "logical_not", _truth(graph, a))


@_entry("bitwise_not", "__invert__")
def _not(graph, a):
    a = graph.lift(a)
    if a._type != BOOL:
        raise graph.error("a boolean under ~", f"an operand of type {a._type}")
    return graph.add(BOOL, "logical_not", a)


def _shift(graph, a, b, left: bool):
    if not isinstance(b, int) or b < 0 or b > 30:
        raise graph.error("shifts by a constant of 0 to 30", f"{b!r}")
    return _TABLE["mul" if left else "floor_divide"](graph, a, 2**b)


_TABLE["__lshift__"] = _TABLE["bitwise_left_shift"] = lambda graph, a, b: _shift(graph, a, b, True)
_TABLE["__rshift__"] = _TABLE["bitwise_right_shift"] = lambda graph, a, b: _shift(graph, a, b, False)


@_entry("where")
def _where(graph, condition, a=None, b=None, *, input=None, other=None):
    a, b = input if a is None else a, other if b is None else b
    if a is None or b is None:
        raise graph.error("torch.where(condition, a, b)", "torch.where without branches")
    condition = graph.lift(condition)
    if condition._type != BOOL:
        raise graph.error("a boolean condition of torch.where (write x != 0)", f"one of type {condition._type}")
    a, b, kind = _pair(graph, a, b)
    return graph.add(kind, "where", condition, a, b)


# `x.where(condition, other)` has its operands in another order than torch.where.
def _where_method(graph, a, condition, b):
    return _where(graph, condition, a, b)


# ---- types -------------------------------------------------------------------------------------------------------


def _cast_to(kind: str):
    return lambda graph, a, *_, **__: cast(graph.lift(a), kind)


for _names_, _type in (("float double half bfloat16", FLOAT), ("int long short", INT), ("bool", BOOL)):
    for _name in _names_.split():
        _TABLE[_name] = _cast_to(_type)


@_entry("to", "type", "type_as")
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


_TABLE["new_ones"], _TABLE["new_zeros"] = _new(1), _new(0)
_TABLE["ones_like"] = lambda graph, a, *, dtype=None, **_: _filled(graph, a, 1, dtype)
_TABLE["zeros_like"] = lambda graph, a, *, dtype=None, **_: _filled(graph, a, 0, dtype)
_TABLE["full_like"] = lambda graph, a, fill_value, *, dtype=None, **_: _filled(graph, a, fill_value, dtype)
_TABLE["new_full"] = lambda graph, a, size, fill_value, *, dtype=None, **_: _filled(graph, a, fill_value, dtype)
_TABLE["new_tensor"] = lambda graph, a, data, *, dtype=None, **_: _filled(graph, a, data, dtype)
_TABLE["dim"] = lambda graph, a: 0
_TABLE["numel"] = lambda graph, a: 1
_TABLE["size"] = lambda graph, a: torch.Size([])


@_entry("item", "tolist", "numpy", "__array__")
def _item(graph, *_, **__):
    raise graph.error("the value itself in place of .item()", "a Python number asked of a traced value")


@_entry("detach")
def _detach(graph, *_):
    raise graph.error("expressions that are differentiated whole (detach captured tensors outside of the function)",
                      "detach() of a traced value")


# ---- Python operators --------------------------------------------------------------------------------------------


def _operator(name: str, reverse: bool):
    entry = _TABLE[f"__{name}__"]
    if reverse:
        return lambda self, other: entry(self._graph, other, self)
    return lambda self, other: entry(self._graph, self, other)


for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(Value, f"__{_name}__", _operator(_name, False))
    setattr(Value, f"__r{_name}__", _operator(_name, True))
    # Tensor op Value arrives as torch.Tensor.__rsub__ and the like.
    _TABLE[f"__r{_name}__"] = (lambda entry: lambda graph, a, b: entry(graph, b, a))(_TABLE[f"__{_name}__"])
_TABLE["rsub"] = _TABLE["__rsub__"]
_TABLE["__rdiv__"] = _TABLE["__rtruediv__"]
for _name in "lt le gt ge eq ne".split():
    setattr(Value, f"__{_name}__", _operator(_name, False))
for _name in "neg pos abs invert".split():
    setattr(Value, f"__{_name}__", (lambda entry: lambda self: entry(self._graph, self))(_TABLE[f"__{_name}__"]))
Value.__floor__ = lambda self: cast(_floor(self._graph, self), INT)
Value.__ceil__ = lambda self: cast(_ceil(self._graph, self), INT)
Value.__trunc__ = lambda self: cast(_trunc(self._graph, self), INT)
Value.where = lambda self, condition, other: _where_method(self._graph, self, condition, other)
