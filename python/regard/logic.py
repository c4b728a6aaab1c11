"""Logic and shifts on traced Values: &, |, ^, ~ and torch's logical functions."""

from __future__ import annotations

from .expr import BOOL, INT, Value, cast
from .functions import TABLE, entry_for


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


TABLE["logical_and"], TABLE["bitwise_and"] = _logical("logical_and")
TABLE["logical_or"], TABLE["bitwise_or"] = _logical("logical_or")
TABLE["__and__"], TABLE["__or__"] = TABLE["bitwise_and"], TABLE["bitwise_or"]


@entry_for("logical_xor", "bitwise_xor", "__xor__")
def _xor(graph, a, b):
    a, b = graph.lift(a), graph.lift(b)
    if a._type != BOOL or b._type != BOOL:
        raise graph.error("booleans under &, | and ^", f"operands of type {a._type} and {b._type}")
    return graph.add(BOOL, "ne", a, b)


@entry_for("logical_not")
def _logical_not(graph, a):
    return graph.add(BOOL, "logical_not", _truth(graph, a))


@entry_for("bitwise_not", "__invert__")
def _not(graph, a):
    a = graph.lift(a)
    if a._type != BOOL:
        raise graph.error("a boolean under ~", f"an operand of type {a._type}")
    return graph.add(BOOL, "logical_not", a)


def _shift(graph, a, b, left: bool):
    if not isinstance(b, int) or b < 0 or b > 30:
        raise graph.error("shifts by a constant of 0 to 30", f"{b!r}")
    return TABLE["mul" if left else "floor_divide"](graph, a, 2**b)


TABLE["__lshift__"] = TABLE["bitwise_left_shift"] = lambda graph, a, b: _shift(graph, a, b, True)
TABLE["__rshift__"] = TABLE["bitwise_right_shift"] = lambda graph, a, b: _shift(graph, a, b, False)
