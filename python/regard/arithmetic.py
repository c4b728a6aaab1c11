"""Arithmetic and order on traced Values.

Where an expression has no node of its own a function is composed of nodes so that value and derivative are torch's:
clamp passes the gradient on its bounds, relu'(0) = 0.
"""

from __future__ import annotations

import math

from .expr import BOOL, FLOAT, INT, Graph, cast, promote
from .functions import TABLE, entry_for


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


@entry_for("add", "__add__")
def _add(graph, a, b, *, alpha=1):
    b = b if alpha == 1 else TABLE["mul"](graph, b, alpha)
    a, b = graph.lift(a), graph.lift(b)
    if a._type == b._type == BOOL:
        return graph.add(BOOL, "logical_or", a, b)
    return graph.add(promote(a, b), "add", a, b)


@entry_for("sub", "subtract", "__sub__")
def _sub(graph, a, b, *, alpha=1):
    b = b if alpha == 1 else TABLE["mul"](graph, b, alpha)
    a, b = _number(graph, a, b, "sub")
    return graph.add(promote(a, b), "sub", a, b)


@entry_for("mul", "multiply", "__mul__")
def _mul(graph, a, b):
    a, b = graph.lift(a), graph.lift(b)
    if a._type == b._type == BOOL:
        return graph.add(BOOL, "logical_and", a, b)
    return graph.add(promote(a, b), "mul", a, b)


@entry_for("div", "divide", "true_divide", "__truediv__", "__div__")
def _div(graph, a, b, *, rounding_mode=None):
    a, b = _number(graph, a, b, "div")
    if rounding_mode == "floor":
        return graph.add(promote(a, b), "floor_div", a, b)
    quotient = graph.add(FLOAT, "div", a, b)
    if rounding_mode == "trunc":
        return cast(trunc(graph, quotient), promote(a, b))
    return quotient


TABLE["floor_divide"] = TABLE["__floordiv__"] = _binary("floor_div")
TABLE["remainder"] = TABLE["__mod__"] = _binary("mod")


@entry_for("pow", "__pow__", "float_power")
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


@entry_for("neg", "negative", "__neg__")
def _neg(graph, a):
    a = graph.lift(a)
    if a._type == BOOL:
        raise graph.error("`~a` on a boolean", "a boolean negated with minus")
    return graph.add(a._type, "neg", a)


@entry_for("positive", "__pos__", "clone", "contiguous")
def _same(graph, a, **_):
    return graph.lift(a)


@entry_for("abs", "absolute", "__abs__")
def _abs(graph, a):
    a = graph.lift(a)
    return graph.add(a._type, "abs", a) if a._type != BOOL else a


@entry_for("floor")
def floor(graph, a):
    a = graph.lift(a)
    return graph.add(FLOAT, "floor", a) if a._type == FLOAT else a


@entry_for("ceil")
def ceil(graph, a):
    a = graph.lift(a)
    return _neg(graph, floor(graph, _neg(graph, a))) if a._type == FLOAT else a


@entry_for("trunc", "fix")
def trunc(graph, a):
    a = graph.lift(a)
    return a if a._type != FLOAT else where(graph, TABLE["lt"](graph, a, 0.0), ceil(graph, a), floor(graph, a))


def _real(op: str):
    def apply(graph, a):
        return graph.add(FLOAT, op, cast(graph.lift(a), FLOAT))

    return apply


for _op in ("exp", "log", "tanh", "sigmoid", "sqrt", "cos", "sin"):
    TABLE[_op] = _real(_op)
TABLE["expit"] = TABLE["special_expit"] = TABLE["sigmoid"]


def _composed(f):
    return lambda graph, a: f(cast(graph.lift(a), FLOAT))


TABLE["square"] = lambda graph, a: _mul(graph, a, a)
TABLE["rsqrt"] = _composed(lambda a: 1.0 / a.sqrt())
TABLE["reciprocal"] = _composed(lambda a: 1.0 / a)
TABLE["exp2"] = _composed(lambda a: (a * math.log(2.0)).exp())
TABLE["log2"] = _composed(lambda a: a.log() * (1.0 / math.log(2.0)))
TABLE["log10"] = _composed(lambda a: a.log() * (1.0 / math.log(10.0)))
TABLE["tan"] = _composed(lambda a: a.sin() / a.cos())
TABLE["silu"] = lambda graph, a, inplace=False: _mul(graph, a, TABLE["sigmoid"](graph, a))
TABLE["relu"] = lambda graph, a, inplace=False: where(graph, TABLE["gt"](graph, a, 0), a, 0)
TABLE["sign"] = lambda graph, a: where(graph, TABLE["gt"](graph, a, 0), 1, where(
    graph, TABLE["lt"](graph, a, 0), -1, 0)).to(graph.lift(a).dtype)


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
    TABLE[_op] = TABLE[f"{_op}imum"] = _extremum(_op)


@entry_for("clamp", "clip")
def _clamp(graph, a, min=None, max=None):
    if min is None and max is None:
        raise graph.error("a bound for clamp", "none")
    a = graph.lift(a)
    for bound, op, beyond in ((min, "max", "lt"), (max, "min", "gt")):
        if bound is None:
            continue
        a, bound, kind = _pair(graph, a, bound)
        # Integers keep min and max, whose bounds interval analysis knows; reals take torch's derivative on a bound.
        a = graph.add(kind, op, a, bound) if kind == INT else where(graph, TABLE[beyond](graph, a, bound), bound, a)
    return a


TABLE["clamp_min"] = lambda graph, a, min: _clamp(graph, a, min=min)
TABLE["clamp_max"] = lambda graph, a, max: _clamp(graph, a, max=max)


def _compare(op: str):
    def apply(graph, a, b):
        a, b, _ = _pair(graph, a, b)
        return graph.add(BOOL, op, a, b)

    return apply


for _op, _long in (("lt", "less"), ("le", "less_equal"), ("gt", "greater"), ("ge", "greater_equal"),
                   ("ne", "not_equal"), ("eq", "eq")):
    TABLE[_op] = TABLE[_long] = TABLE[f"__{_op}__"] = _compare(_op)


@entry_for("where")
def where(graph, condition, a=None, b=None, *, input=None, other=None):
    a, b = input if a is None else a, other if b is None else b
    if a is None or b is None:
        raise graph.error("torch.where(condition, a, b)", "torch.where without branches")
    condition = graph.lift(condition)
    if condition._type != BOOL:
        raise graph.error("a boolean condition of torch.where (write x != 0)", f"one of type {condition._type}")
    a, b, kind = _pair(graph, a, b)
    return graph.add(kind, "where", condition, a, b)
