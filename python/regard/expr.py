"""Expressions over one (batch, head, query, key) pair, recorded by running ordinary Python.

A `Value` stands for a number of every pair. Python operators and torch functions on Values record nodes of the
engine's expression table; nothing is computed. Reading a captured tensor, `slopes[h]` or `bias[h, i, j]`, records a
capture. `torch.Tensor.__getitem__` and torch's functions reach us through `__torch_function__`.

Types are bool, int and float and promote as torch's do.
"""

from __future__ import annotations

import operator
import threading

import torch

from .errors import TraceError, TraceAttributeError, suggestion, trace_error

BOOL, INT, FLOAT = "bool", "int", "float"
_RANK = {BOOL: 0, INT: 1, FLOAT: 2}
_DTYPE = {BOOL: torch.bool, INT: torch.int32, FLOAT: torch.float32}
_INT32 = 2**31


def type_of_dtype(dtype: torch.dtype) -> str | None:
    """"bool", "int" or "float"; None for complex and quantized types."""
    if dtype == torch.bool:
        return BOOL
    if dtype.is_floating_point:
        return FLOAT
    return None if dtype.is_complex or dtype in (torch.qint8, torch.quint8, torch.qint32) else INT


class Graph:
    """The node table of one spec, and the tensors it reads, in order of first use."""

    def __init__(self, function: str, device: torch.device | None = None):
        self.function = function
        self.device = device
        self.role = "score"
        self.nodes: list[tuple] = []
        self.captures: dict[str, torch.Tensor] = {}
        self._known: dict[tuple, int] = {}
        self._seen: list[tuple[torch.Tensor, str]] = []  # captured objects and their names

    def leaf(self, op: str, type: str = INT) -> "Value":
        return self.add(type, op)

    def add(self, type: str, op: str, *rest) -> "Value":
        """The node (op, *rest), shared when it was recorded before. Operands in `rest` are Values."""
        entry = (op, *[part._node if isinstance(part, Value) else part for part in rest])
        # 0.0 and -0.0, or 1 and True, are equal keys but different constants: constants are keyed by their text.
        key = ("constant", repr(rest[0]), rest[1]) if op == "constant" else entry
        node = self._known.get(key)
        if node is None:
            node = len(self.nodes)
            self.nodes.append(entry)
            self._known[key] = node
        return Value(self, node, type)

    def constant(self, number, type: str | None = None) -> "Value":
        if type is None:
            type = BOOL if isinstance(number, bool) else INT if isinstance(number, int) else FLOAT
        if type == INT and not -_INT32 <= number < _INT32:
            raise self.error("integer constants of 32 bits", f"{number}")
        if type == FLOAT:
            number = float(number)
            if number != number:
                raise self.error("a number that is not NaN", "the constant nan")
        return self.add(type, "constant", number, type)

    def lift(self, x) -> "Value":
        """x as a Value: a number becomes a constant, a tensor without axes a capture."""
        if isinstance(x, Value):
            if x._graph is not self:
                raise self.error("values of this call", "a value kept from another traced call")
            return x
        if isinstance(x, (bool, int, float)):
            return self.constant(x)
        if isinstance(x, torch.SymInt):  # a tensor, so that a new length needs no new spec
            return self.capture(torch.full((), x, dtype=torch.int64, device=self.device), ())
        if isinstance(x, torch.Tensor):
            if x.dim() == 0:
                return self.capture(x, ())
            raise self.error(f"captured tensors indexed by b, h, i or j, one index an axis ({x.dim()} here)",
                             f"a tensor of shape {tuple(x.shape)} used as a number")
        if isinstance(x, PartialIndex):
            raise x._error()
        if hasattr(x, "__index__"):  # integers of other libraries
            return self.constant(operator.index(x))
        if hasattr(x, "__float__"):
            return self.constant(float(x))
        raise self.error("a traced value, a number or a captured tensor", f"{x!r} of type {type(x).__name__}")

    def capture(self, tensor: torch.Tensor, indices: tuple) -> "Value":
        """tensor[indices]; the same tensor object is the same capture."""
        type = type_of_dtype(tensor.dtype)
        if type is None:
            raise self.error("captured tensors of a real, integer or boolean dtype", f"{tensor.dtype}")
        return self.add(type, "capture", self._name(tensor), type, *indices)

    def _name(self, tensor: torch.Tensor) -> str:
        # Compared by `is`: under torch.compile a dict by id() would tie the graph to one object and compile anew.
        for seen, name in self._seen:
            if seen is tensor:
                return name
        name = f"c{len(self._seen)}"
        self._seen.append((tensor, name))
        self.captures[name] = self._on_device(tensor)
        return name

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device is None or tensor.device == self.device:
            return tensor
        if tensor.dim() == 0:  # as in torch, a number may come from the host
            return tensor.to(self.device)
        raise self.error(f"captured tensors on {self.device}, the device of q",
                         f"a tensor of shape {tuple(tensor.shape)} on {tensor.device}")

    def error(self, expected: str, found: str, kind: type[TraceError] = TraceError) -> TraceError:
        return trace_error(self.function, f"{expected} in {self.role}", found, kind=kind)


class _Active(threading.local):
    """The graph being recorded, for the leaf functions below that take no Value."""

    def __init__(self):
        self.graph: Graph | None = None


_active = _Active()


def _current(name: str) -> Graph:
    graph = _active.graph
    if graph is None:
        raise ValueError(f"[{name}] expected to be called inside a traced score, mask or weight function; found no "
                         "call being traced")
    return graph


def dot(name: str = "", begin: int = 0, end: int = -1, head: int = -1) -> "Value":
    """<q_i, k_j>, raw: of the call's own pair, of features [begin, end), or of the operand pair `name`."""
    graph = _current("dot")
    if head != -1:
        return graph.add(FLOAT, "dot", name, begin, end, head)
    if (begin, end) != (0, -1):
        return graph.add(FLOAT, "dot", name, begin, end)
    return graph.add(FLOAT, "dot", name) if name else graph.add(FLOAT, "dot")


def scale() -> "Value":
    """The scale of the call: the argument `scale`, or 1/sqrt(Dh)."""
    return _current("scale").leaf("scale", FLOAT)


def queries() -> "Value":
    """M, the number of queries of the call."""
    return _current("queries").leaf("queries")


def keys() -> "Value":
    """N, the number of keys of the call."""
    return _current("keys").leaf("keys")


def batches() -> "Value":
    """B, the number of batch entries of the call."""
    return _current("batches").leaf("batches")


def heads() -> "Value":
    """H, the number of query heads of the call."""
    return _current("heads").leaf("heads")


def promote(a: "Value", b: "Value") -> str:
    return a._type if _RANK[a._type] >= _RANK[b._type] else b._type


def cast(value: "Value", type: str) -> "Value":
    return value if value._type == type else value._graph.add(type, "cast", value, type)


class Value:
    """A number of every pair, as an expression. Use it as a torch scalar."""

    def __init__(self, graph: Graph, node: int, type: str):
        self._graph = graph
        self._node = node
        self._type = type

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        from . import functions

        return functions.dispatch(func, args, kwargs or {})

    def __getattr__(self, name: str):
        from . import functions

        method = functions.method(name)
        if method is None:
            raise self._graph.error("operations that an expression knows" + suggestion(name, functions.names()),
                                    f".{name} of a traced value", TraceAttributeError)
        return lambda *args, **kwargs: method(self._graph, self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"Value({self._graph.nodes[self._node][0]}, {self._type})"

    # What a scalar tensor would say of itself.
    dtype = property(lambda self: _DTYPE[self._type])
    device = property(lambda self: self._graph.device)
    shape = property(lambda self: torch.Size([]))
    ndim = property(lambda self: 0)

    def __getitem__(self, index):
        raise self._graph.error("captured tensors where something is indexed", "an index into a traced value")

    # Python asks for a number where a traced value has none yet.
    def __bool__(self):
        raise self._graph.error(*_branch())

    def __float__(self):
        raise self._graph.error("torch functions on traced values: torch.exp(s), not math.exp(s); s.float(), not "
                                "float(s)", "a Python number asked of a traced value")

    def __int__(self):
        raise self._graph.error("i.int(), or i.to(torch.int32), in place of int(i)",
                                "a Python integer asked of a traced value")

    def __index__(self):
        raise self._graph.error("a captured torch.Tensor where a traced value is the index (torch.tensor(table)[i]), "
                                "and no range() over one", "a Python integer asked of a traced value")

    def __len__(self):
        raise self._graph.error("scalars: each traced value is one number of one pair", "len() of a traced value")

    def __iter__(self):
        raise self._graph.error("scalars: each traced value is one number of one pair",
                                "a loop over a traced value")

    def __contains__(self, item):
        raise self._graph.error("scalars: each traced value is one number of one pair", "`in` on a traced value")

    def __hash__(self):
        raise self._graph.error("a captured tensor indexed by the value in place of a dict or set lookup",
                                "hash() of a traced value")

    def __round__(self, digits=None):
        raise self._graph.error("torch.floor(x + 0.5) in place of round(x)", "round() of a traced value")


def _branch() -> tuple[str, str]:
    """What to write for the Python construct on the user's line that asked for a truth value."""
    from .errors import user_line

    _, source = user_line()
    hints = []
    if " and " in source:
        hints.append("`a & b` for `a and b`")
    if " or " in source:
        hints.append("`a | b` for `a or b`")
    if "not " in source:
        hints.append("`~a` for `not a`")
    if "max(" in source and "torch.max" not in source or "min(" in source and "torch.min" not in source:
        hints.append("torch.maximum / torch.minimum for max / min")
    if "if " in source or "while " in source:
        hints.insert(0, "torch.where(condition, a, b) for `if`")
    if not hints:
        hints = ["torch.where(condition, a, b) for `if`", "`(a < b) & (b < c)` for `a < b < c`"]
    return "no Python branch on a traced value (write " + ", ".join(hints) + ")", "a truth value asked of it"


class PartialIndex:
    """A captured tensor some of whose axes are still to be indexed: bias[h] before bias[h][i, j]."""

    def __init__(self, graph: Graph, tensor: torch.Tensor, indices: tuple):
        self._graph, self._tensor, self._indices = graph, tensor, indices

    def __getitem__(self, index):
        from . import functions

        more = index if isinstance(index, tuple) else (index,)
        return functions.read(self._graph, self._tensor, self._indices + more)

    def _error(self):
        return self._graph.error(f"{self._tensor.dim()} indices, one an axis",
                                 f"{len(self._indices)} into a tensor of shape {tuple(self._tensor.shape)}")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        for argument in args:
            if isinstance(argument, PartialIndex):
                raise argument._error()
        raise ValueError(f"[attention] expected a fully indexed tensor; found one as an argument of {func.__name__}")

    def __getattr__(self, name):
        raise self._error()


def _refuse(self, *_):
    raise self._error()


for _name in ("add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg abs and rand or "
              "ror xor rxor invert lt le gt ge eq ne bool float int len iter").split():
    setattr(PartialIndex, f"__{_name}__", _refuse)
PartialIndex.__hash__ = object.__hash__
