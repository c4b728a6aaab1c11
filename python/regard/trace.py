"""Runs the user's functions once on Values and prints what they did as a spec."""

from __future__ import annotations

import inspect
import math
import types
from typing import Any, Callable, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from . import functions, operators  # noqa: F401  operators gives Value Python's
from .errors import TraceError, definition, fail, line_of, suggestion, trace_error
from .expr import BOOL, FLOAT, INT, Graph, PartialIndex, Value, _active, cast

NORMALIZERS = ("softmax", "signed_softmax", "sum", "sigmoid", "relu", "identity", "z_score")
_NORMALIZER_FIELDS = ("kind", "sinks", "divisor", "floor", "epsilon", "epsilon_place", "detach")
_LITERALS = {"constant": 2, "dot": 4, "capture": 2}  # arguments that are not nodes stand first


class PairOutput(NamedTuple):
    """sum_j w_ij value(i, j) for every row, w the normalized weight; channel bucket(i, j) of `buckets` receives it.

    `value` and `bucket` are functions of (s, b, h, i, j) or (b, h, i, j), s the final score.
    """

    value: Callable
    bucket: Callable | None = None
    buckets: int = 1


class Traced(NamedTuple):
    """A spec as JSON and as a dict, the tensors that its functions closed over and the operand pairs that they read."""

    json: str
    table: dict
    captures: dict[str, torch.Tensor]
    operands: list[str]


def trace(function: str = "attention", *, score=None, mask=None, weight=None, counted=None, pair_outputs=(),
          normalizer="softmax", sinks=False, scale=None, dropout=0.0, is_causal=False, device=None) -> Traced:
    """The spec of the given functions. `function` is the name that errors carry."""
    if not isinstance(pair_outputs, (tuple, list)):
        fail(function, "pair_outputs to be a list of PairOutputs or functions", type(pair_outputs).__name__)
    graph = Graph(function, device)
    table: dict[str, Any] = {}
    before = _active.graph
    _active.graph = graph
    try:
        pair = [graph.leaf(op) for op in ("batch", "head", "query", "key")]
        final = None
        if score is not None or weight is not None or pair_outputs:
            final = graph.leaf("scale", FLOAT) * graph.leaf("dot", FLOAT)
        if score is not None:
            final = _run(graph, "score", score, [final, *pair], FLOAT)
            table["score"] = final
        keep = _keep(graph, mask, is_causal, pair)
        if keep is not None:
            table["keep"] = keep
        if weight is not None:
            table["weight"] = _run_any(graph, "weight", weight, final, pair, FLOAT)
        if counted is not None:
            table["counted"] = _run(graph, "counted", counted, pair, BOOL)
        outputs = [_pair_output(graph, index, output, final, pair) for index, output in enumerate(pair_outputs)]
        if outputs:
            table["pair_outputs"] = outputs
    finally:
        _active.graph = before
    _settings(function, table, normalizer, sinks, scale, dropout)
    nodes, table = _prune(graph, table)
    used = {node[1] for node in nodes if node[0] == "capture"}
    captures = {name: graph.captures[name] for name in sorted(graph.captures) if name in used}
    if nodes:
        table = {"nodes": nodes, **table}
    operands = sorted({node[1] for node in nodes if node[0] == "dot" and len(node) > 1 and node[1]})
    return Traced(json_text(table), table, captures, operands)


def _keep(graph: Graph, mask, is_causal: bool, pair: list[Value]) -> Value | None:
    keep = _run(graph, "mask", mask, pair, BOOL) if mask is not None else None
    if not is_causal:
        return keep
    causal = pair[2] >= pair[3]
    return causal if keep is None else causal & keep


def _pair_output(graph: Graph, index: int, output, final: Value, pair: list[Value]) -> dict:
    if not isinstance(output, PairOutput):
        output = PairOutput(output) if not isinstance(output, (tuple, list)) else PairOutput(*output)
    role = f"pair_outputs[{index}]"
    if isinstance(output.buckets, bool) or not isinstance(output.buckets, int) or output.buckets < 1:
        fail(graph.function, f"buckets >= 1 in {role}", repr(output.buckets))
    if (output.bucket is None) != (output.buckets == 1):
        fail(graph.function, f"a bucket function exactly when buckets > 1 in {role}",
             f"buckets={output.buckets} {'without' if output.bucket is None else 'with'} one")
    entry: dict[str, Any] = {"value": _run_any(graph, role, output.value, final, pair, FLOAT)}
    if output.bucket is not None:
        entry["bucket"] = _run_any(graph, f"{role}.bucket", output.bucket, final, pair, INT)
        entry["buckets"] = output.buckets
    return entry


def _settings(function: str, table: dict, normalizer, sinks: bool, scale, dropout: float) -> None:
    fields = {"kind": normalizer} if isinstance(normalizer, str) else normalizer
    if not isinstance(fields, dict):
        fail(function, "normalizer to be a name or a dict", repr(normalizer))
    for key in fields:
        if key not in _NORMALIZER_FIELDS:
            fail(function, f"normalizer keys among {', '.join(_NORMALIZER_FIELDS)}",
                 f"'{key}'{suggestion(key, _NORMALIZER_FIELDS)}")
    kind = fields.get("kind", "softmax")
    if kind not in NORMALIZERS:
        fail(function, f"normalizer among {', '.join(NORMALIZERS)}", f"{kind!r}{suggestion(str(kind), NORMALIZERS)}")
    if "sinks" in fields and bool(fields["sinks"]) != sinks:
        fail(function, "normalizer['sinks'] to agree with the argument sinks",
             f"{fields['sinks']} {'with' if sinks else 'without'} sink logits")
    fields = {**fields, "sinks": True} if sinks else {k: v for k, v in fields.items() if k != "sinks"}
    if fields != {"kind": "softmax"} and fields:
        table["normalizer"] = fields
    if scale is not None:
        if isinstance(scale, (bool, Value, torch.Tensor)) or not isinstance(scale, (int, float)):
            fail(function, "scale to be a number (multiply by a tensor inside of score)", type(scale).__name__)
        if not math.isfinite(scale):
            fail(function, "a finite scale", repr(scale))
        table["scale"] = float(scale)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        fail(function, "dropout in [0, 1)", repr(dropout))
    if dropout:
        table["dropout"] = float(dropout)


# ---- running one function ----------------------------------------------------------------------------------------

_SIGNATURES = {
    4: "4 arguments (batch, head, query, key)",
    5: "5 arguments (score, batch, head, query, key)",
}


def _arity(function) -> set[int]:
    """Which of 4 and 5 positional arguments the function takes."""
    code = function.__code__ if isinstance(function, types.FunctionType) else None
    if code is not None and not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS) and \
            not code.co_kwonlyargcount:
        most = code.co_argcount
        least = most - len(function.__defaults__ or ())
        return {count for count in (4, 5) if least <= count <= most}
    try:  # the slow way, for bound methods, partial functions, callable objects and *args
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return {4, 5}
    counts = set()
    for count in (4, 5):
        try:
            signature.bind(*[None] * count)
            counts.add(count)
        except TypeError:
            pass
    return counts


def _run_any(graph: Graph, role: str, function, final: Value, pair: list[Value], type: str) -> Value:
    """A function of (b, h, i, j), or of (s, b, h, i, j)."""
    if not callable(function):
        fail(graph.function, f"{role} to be a function", _named(function))
    counts = _arity(function)
    if not counts:
        raise trace_error(graph.function, f"{role} to take {_SIGNATURES[4]} or {_SIGNATURES[5]}",
                          "another number of arguments", definition(function))
    return _run(graph, role, function, pair if 5 not in counts else [final, *pair], type)


def _run(graph: Graph, role: str, function, arguments: list[Value], type: str) -> Value:
    if not callable(function):
        fail(graph.function, f"{role} to be a function", _named(function))
    if len(arguments) not in _arity(function):
        raise trace_error(graph.function, f"{role} to take {_SIGNATURES[len(arguments)]}",
                          _found_arguments(function), definition(function))
    graph.role = role
    try:
        if torch.compiler.is_compiling():
            with _Dispatch():
                result = function(*arguments)
        else:
            result = function(*arguments)
        return _result(graph, role, function, result, type)
    except TraceError:
        raise
    except Exception as error:
        raise trace_error(graph.function, f"{role} to run on traced values", f"{error.__class__.__name__}: {error}",
                          line_of(error, function)) from error


class _Dispatch(TorchFunctionMode):
    """For torch.compile, which does not look for Values inside of the tuple of bias[h, i, j]."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if functions.graph_of(args) is not None:
            return functions.dispatch(func, args, kwargs)
        return func(*args, **kwargs)


def _found_arguments(function) -> str:
    try:
        return f"{len(inspect.signature(function).parameters)}"
    except (TypeError, ValueError):
        return "another number"


def _named(x) -> str:
    hint = ""
    if hasattr(x, "mask_mod"):
        hint = " (give its mask_mod)"
    elif isinstance(x, torch.Tensor):
        hint = f" of shape {tuple(x.shape)} (index it: lambda b, h, i, j: mask[i, j])"
    return type(x).__name__ + hint


def _result(graph: Graph, role: str, function, result, type: str) -> Value:
    def place():
        return definition(function)

    if isinstance(result, PartialIndex):
        raise trace_error(graph.function, f"{role} to return one number", "a partly indexed tensor", place())
    if not isinstance(result, (Value, bool, int, float, torch.Tensor)):
        raise trace_error(graph.function, f"{role} to return a traced value", f"{result.__class__.__name__}", place())
    if isinstance(result, torch.Tensor) and result.dim() != 0:
        raise trace_error(graph.function, f"{role} to return one number (index captured tensors by b, h, i or j)",
                          f"a tensor of shape {tuple(result.shape)}", place())
    value = graph.lift(result)
    if type == FLOAT:
        return cast(value, FLOAT)
    if value._type != type:
        kind = "a boolean (write a comparison)" if type == BOOL else "an integer"
        raise trace_error(graph.function, f"{role} to return {kind}", f"a value of type {value._type}", place())
    return value


# ---- printing ----------------------------------------------------------------------------------------------------


def _operands(node: tuple) -> range:
    """Which positions of a node refer to other nodes."""
    op = node[0]
    if op == "cast":
        return range(1, 2)
    return range(1 + _LITERALS.get(op, 0), len(node))


def json_text(value) -> str:
    """json.dumps of what a table holds; torch.compile can trace this one."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join([f'"{key}": {json_text(item)}' for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([json_text(item) for item in value]) + "]"
    return repr(value)


def _prune(graph: Graph, table: dict) -> tuple[list[list], dict]:
    """The nodes that the roots of `table` read, renumbered; JSON's missing infinities are the strings inf and -inf."""
    roots = [value for value in table.values() if isinstance(value, Value)]
    for output in table.get("pair_outputs", ()):
        roots += [value for value in output.values() if isinstance(value, Value)]
    used = [False] * len(graph.nodes)
    for root in roots:
        used[root._node] = True
    for number in range(len(used) - 1, -1, -1):  # operands stand before their users
        if used[number]:
            node = graph.nodes[number]
            for position in _operands(node):
                used[node[position]] = True
    new, nodes = {}, []
    for number, node in enumerate(graph.nodes):
        if not used[number]:
            continue
        new[number] = len(nodes)
        entry = list(node)
        for position in _operands(node):
            entry[position] = new[entry[position]]
        if node[0] == "constant" and node[2] == FLOAT and math.isinf(node[1]):
            entry[1] = "inf" if node[1] > 0 else "-inf"
        nodes.append(entry)

    def renumber(value):
        if isinstance(value, Value):
            return new[value._node]
        if isinstance(value, list):
            return [renumber(item) for item in value]
        if isinstance(value, dict):
            return {key: renumber(item) for key, item in value.items()}
        return value

    return nodes, {key: renumber(value) for key, value in table.items()}
