"""A torch module or function of somebody's file, held against the theorems.

    adapted = adapt(load("my_attention.py"))      # registers it as a mechanism of its own
    report = regard.check(adapted.id)

What the theorems need to know is which argument is which. A file says it in a dict named `regard`, the command line
says it in options (--x, --padding, ...), and the usual names of torch are known:

    regard = dict(
        object="module",            # the module, its class, or a function; default: the only one in the file
        arguments=dict(dim=8),      # of a class: what it is made with
        x="query",                  # or several that are the same tokens: ("query", "key", "value")
        memory=("key", "value"),    # arguments that take another sequence in cross-attention
        padding="key_padding_mask", # (B, N) boolean; true where `padding_true` says: "ignore" (default) or "attend"
        padding_true="ignore",
        lengths="lengths",          # (B) int64, in place of padding
        mask="attn_mask",           # (M, N) boolean; true where `mask_true` says: "ignore" (default) or "attend"
        mask_true="ignore",
        causal=True,                # True, False, or the name of a flag
        cache="cache",              # the module returns (y, cache); None at the start
        constants=dict(need_weights=False),  # arguments of every call
        width=8,
    )
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import sys

import torch
from torch.utils import _pytree as pytree

from .errors import fail, suggestion

_X = ("x", "query", "q", "src", "input", "hidden_states", "tokens", "inputs")
_PADDING = ("key_padding_mask", "src_key_padding_mask", "padding_mask")
_LENGTHS = ("lengths", "valid_lens", "seq_lens")
_CAUSAL = ("causal", "is_causal")
_WIDTHS = ("width", "embed_dim", "dim", "d_model", "hidden_size", "embedding_dim", "in_features", "in_channels")
_HEADS = ("heads", "num_heads", "n_heads", "nhead", "n_head")
_GUESSES = (8, 16, 12, 4, 32, 64)
_DOCS = {"lengths": "(B) int64", "hidden": "(M, N) bool: true = NOT attended", "memory": "(B, N, Dm)"}
_SCHEMA = ("(Tensor x, Tensor[] weights, Tensor[] inputs, str[] input_names, bool causal, bool training, "
           "str[] outputs) -> Tensor[]")

_library = torch.library.Library("regard_foreign", "FRAGMENT")
_ops: dict[str, "Adapted"] = {}


@dataclasses.dataclass
class Description:
    """What the arguments of a module or function mean; the fields are those of the dict `regard`."""

    object: str | None = None
    arguments: dict = dataclasses.field(default_factory=dict)
    x: tuple = ()
    memory: tuple = ()
    padding: str | None = None
    padding_true: str = "ignore"
    lengths: str | None = None
    mask: str | None = None
    mask_true: str = "ignore"
    causal: bool | str = False
    cache: str | None = None
    constants: dict = dataclasses.field(default_factory=dict)
    width: int | None = None


def describe(given: dict) -> Description:
    """The description in a dict, its keys checked."""
    known = [field.name for field in dataclasses.fields(Description)]
    for key in given:
        if key not in known:
            fail("check", f"keys of `regard` among {', '.join(known)}", f"'{key}'{suggestion(key, known)}")
    description = Description(**given)
    for key in ("x", "memory"):
        value = getattr(description, key)
        setattr(description, key, (value,) if isinstance(value, str) else tuple(value))
    for key in ("padding_true", "mask_true"):
        if getattr(description, key) not in ("ignore", "attend"):
            fail("check", f"{key} 'ignore' or 'attend'", repr(getattr(description, key)))
    return description


# ---- the file --------------------------------------------------------------------------------------------------------


def load(path: str):
    """Runs a Python file as a module and returns it."""
    if not os.path.isfile(path):
        fail("check", "a Python file", f"'{path}', and no such file exists")
    name = "regard_checked_" + os.path.splitext(os.path.basename(path))[0].replace(".", "_")
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # files beside it
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        fail("check", f"a Python file that runs: {path}", f"{type(error).__name__}: {error}")
    finally:
        sys.path.pop(0)
    return module


def candidates(module) -> dict[str, object]:
    """The modules, the classes of modules and the public functions that a file defines, by name."""
    found = {}
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        is_class = inspect.isclass(value) and issubclass(value, torch.nn.Module) and own
        if isinstance(value, torch.nn.Module) or is_class or (inspect.isfunction(value) and own):
            if not name.startswith("_"):
                found[name] = value
    return found


def choose(module, name: str | None):
    """(name, object): the one named; else the only module, class or function, or `module` or `attention`."""
    found = candidates(module)
    if name is not None:
        if name in found:
            return name, found[name]
        fail("check", f"an object of {module.__file__} among {', '.join(found) or 'none'}",
             f"'{name}'{suggestion(name, found)}")
    modules = [n for n, v in found.items() if isinstance(v, torch.nn.Module)]
    classes = [n for n, v in found.items() if inspect.isclass(v)]
    functions = [n for n, v in found.items() if inspect.isfunction(v)]
    for names in (modules, classes, functions):
        usual = [n for n in names if n in ("module", "attention", "Attention", "Module")]
        if len(names) == 1 or usual:
            chosen = names[0] if len(names) == 1 else usual[0]
            return chosen, found[chosen]
        if names:
            fail("check", f"--object NAME, one of {', '.join(found)}", "none named")
    fail("check", f"a torch.nn.Module or a function in {module.__file__}", "none")


def construct(kind, description: Description) -> torch.nn.Module:
    """An instance of a class: with the arguments described, or with small widths and two heads where they are asked."""
    arguments = dict(description.arguments)
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if name == "self" or name in arguments or not required:
            continue
        if name in _WIDTHS:
            arguments[name] = description.width or 8
        elif name in _HEADS:
            arguments[name] = 2
        else:
            fail("check", f"arguments for {kind.__name__} in the file's dict `regard`", f"none for '{name}'")
    torch.manual_seed(0)
    return kind(**arguments)


def complete(description: Description, target) -> Description:
    """Fills in what the names of the arguments say."""
    called = target.forward if isinstance(target, torch.nn.Module) else target
    parameters = inspect.signature(called).parameters
    names = list(parameters)

    def first(known):
        return next((name for name in names if name in known), None)

    if isinstance(target, torch.nn.MultiheadAttention):
        description.x = description.x or ("query", "key", "value")
        description.padding = description.padding or "key_padding_mask"
        description.mask = description.mask or "attn_mask"
        if not target.batch_first:
            fail("check", "torch.nn.MultiheadAttention with batch_first=True, x (B, N, D)", "batch_first=False")
        return description
    if not description.x:
        triple = [n for n in names if n in ("query", "key", "value", "q", "k", "v")]
        description.x = tuple(triple[:3]) if len(triple) >= 3 else (first(_X) or (names[0] if names else "x"),)
    if not (description.padding or description.lengths):
        description.padding, description.lengths = first(_PADDING), first(_LENGTHS)
        if description.padding:
            description.lengths = None
    if description.causal is False and first(_CAUSAL):
        description.causal = first(_CAUSAL)
    asked = [*description.x, *description.memory, description.padding, description.lengths, description.mask,
             description.cache, description.causal if isinstance(description.causal, str) else None]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in asked:
        if name is not None and name not in parameters and not takes_any:
            fail("check", f"arguments among {', '.join(names) or 'none'}", f"'{name}'{suggestion(name, names)}")
    return description


# ---- calls -----------------------------------------------------------------------------------------------------------


class Adapted:
    """A module or function that answers the calls of the suite, whose arguments are those of `_SCHEMA`."""

    def __init__(self, id: str, target, description: Description):
        self.id, self.target, self.description = id, target, description
        self.module = target if isinstance(target, torch.nn.Module) else None
        self.names = [name for name, _ in self.module.named_parameters()] if self.module else []
        self.weights = [p.detach().clone() for _, p in self.module.named_parameters()] if self.module else []
        self.cache_axes, self.cache_kinds, self.cache_tree = [], [], None
        self.width = self._find_width()
        self.role = "mixer" if self._trial(5, self.width).dim() == 3 else "pool"
        self.caches = self._find_caches() if description.cache else []

    # -- one call --

    def __call__(self, x, weights, inputs, input_names, causal, training, outputs):
        given = dict(zip(input_names, inputs))
        cache = [given[f"cache.{i}"] for i in range(len(self.caches))] if "cache.0" in given else None
        result = self._run(x, weights, given, causal, training, cache)
        y, *rest = result if isinstance(result, (tuple, list)) else (result,)
        if not outputs:
            return [y.clone() if y is x else y]
        leaves, tree = pytree.tree_flatten(rest[0])
        self.cache_tree = tree
        return [y.clone() if y is x else y, *self._streams(leaves, x)]

    def _run(self, x, weights, given, causal, training, cache):
        description, keywords = self.description, dict(self.description.constants)
        for name in description.x:
            keywords[name] = x
        for name in description.memory:
            if "memory" in given:
                keywords[name] = given["memory"]
        if isinstance(description.causal, str):
            keywords[description.causal] = causal
        keywords |= self._masks(x, given)
        if cache is not None:
            keywords[description.cache] = self._unstream(cache)
        if self.module is None:
            return self.target(**keywords)
        buffers = {name: (b.to(x.dtype) if b.is_floating_point() else b).clone()
                   for name, b in self.module.named_buffers()}
        was = self.module.training
        self.module.train(bool(training))
        try:
            return torch.func.functional_call(self.module, {**dict(zip(self.names, weights)), **buffers}, (), keywords)
        finally:
            self.module.train(was)

    def _masks(self, x, given) -> dict:
        """The inputs `lengths` and `hidden` of the suite in the module's terms."""
        description, keywords = self.description, {}
        if "lengths" in given and description.lengths:
            keywords[description.lengths] = given["lengths"]
        elif "lengths" in given:
            ignored = torch.arange(x.shape[1]) >= given["lengths"][:, None]
            keywords[description.padding] = ignored if description.padding_true == "ignore" else ~ignored
        if "hidden" in given:
            keywords[description.mask] = given["hidden"] if description.mask_true == "ignore" else ~given["hidden"]
        return keywords

    # -- the cache: tensors with their token axis second to last, counters as (B,) --

    def _streams(self, leaves, x):
        streams = []
        for leaf, axis in zip(leaves, self.cache_axes or [None] * len(leaves)):
            if not isinstance(leaf, torch.Tensor):
                leaf = torch.full((x.shape[0],), leaf, dtype=torch.int64 if isinstance(leaf, int) else x.dtype)
            streams.append(leaf if axis is None else leaf.movedim(axis, -2))
        return streams

    def _unstream(self, streams):
        leaves = []
        for stream, axis, kind in zip(streams, self.cache_axes, self.cache_kinds):
            stream = stream if axis is None else stream.movedim(-2, axis)
            leaves.append(kind(stream[0]) if kind is not torch.Tensor else stream)
        return pytree.tree_unflatten(leaves, self.cache_tree)

    def _find_caches(self) -> list[dict]:
        """Which axis of every tensor grows with the tokens: found by two calls."""
        leaves = []
        for tokens in (3, 5):
            result = self._run(torch.zeros(2, tokens, self.width), self.weights, {}, True, False, None)
            if not isinstance(result, (tuple, list)) or len(result) < 2:
                fail("check", f"(y, cache) from a module with a cache '{self.description.cache}'",
                     type(result).__name__)
            flat, self.cache_tree = pytree.tree_flatten(result[1])
            leaves.append(flat)
        streams = []
        for index, (few, more) in enumerate(zip(*leaves)):
            if not isinstance(few, torch.Tensor):
                self.cache_axes.append(None)
                self.cache_kinds.append(type(few))
                streams.append({"name": str(index), "kind": "state", "entry": []})
                continue
            grown = [d for d in range(few.dim()) if few.shape[d] != more.shape[d]]
            if few.dim() == 0 or few.shape[0] != 2 or len(grown) > 1:
                fail("check", "cache tensors whose first axis is the batch, with at most one that grows",
                     f"{tuple(few.shape)} after 3 tokens, {tuple(more.shape)} after 5")
            self.cache_axes.append(grown[0] if grown else None)
            self.cache_kinds.append(torch.Tensor)
            entry = [size for d, size in enumerate(few.shape) if d > 0 and d not in grown]
            streams.append({"name": str(index), "kind": "append" if grown else "state", "entry": entry})
        return streams

    # -- what is found out by calling --

    def _trial(self, tokens: int, width: int):
        with torch.no_grad():
            x = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(0))
            result = self._run(x, self.weights, {}, self.description.causal is True, False, None)
        result = result[0] if isinstance(result, (tuple, list)) else result
        if not isinstance(result, torch.Tensor) or result.shape[0] != 2 or result.dim() not in (2, 3):
            fail("check", "an output (B, N, D) or (B, D)", str(getattr(result, "shape", type(result).__name__)))
        return result

    def _find_width(self) -> int:
        if self.description.width:
            return self.description.width
        owners = [self.module, *self.module.modules()] if self.module else []
        guesses = [getattr(owner, name) for owner in owners for name in _WIDTHS
                   if isinstance(getattr(owner, name, None), int)]
        guesses += [shape[-1] for shape in (tuple(w.shape) for w in self.weights) if shape]
        errors = []
        for width in dict.fromkeys([*guesses, *_GUESSES]):
            try:
                self._trial(5, width)
                return width
            except Exception as error:  # whatever somebody's module raises
                errors.append(f"{type(error).__name__}: {error}")
        fail("check", "a module that takes x (2, 5, D), D by `width`", errors[0])

    def inputs(self) -> list[str]:
        description = self.description
        found = ["lengths"] if description.padding or description.lengths else []
        return found + (["hidden"] if description.mask else []) + (["memory"] if description.memory else [])

    def text(self) -> str:
        """The description for the engine, as JSON."""
        causal = self.description.causal
        return json.dumps({
            "id": self.id, "op": f"regard_foreign::{_op_name(self.id)}", "role": self.role, "width": self.width,
            "title": type(self.target).__name__ if self.module else self.target.__name__,
            "causal": "flag" if isinstance(causal, str) else "always" if causal else "never",
            "inputs": [{"name": name, "doc": _DOCS[name]} for name in self.inputs()],
            "weights": [{"name": n, "shape": list(w.shape)} for n, w in zip(self.names, self.weights)],
            "caches": self.caches})


def _op_name(id: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in id)


def adapt(module, **options) -> Adapted:
    """Registers the object of a loaded file as a mechanism; `options` go before the file's dict `regard`."""
    given = {**getattr(module, "regard", {}), **{k: v for k, v in options.items() if v is not None}}
    description = describe(given)
    name, target = choose(module, description.object)
    if inspect.isclass(target):
        target = construct(target, description)
    adapted = Adapted(f"{os.path.basename(module.__file__)}:{name}", target, complete(description, target))
    op = _op_name(adapted.id)
    if op not in _ops:
        _library.define(op + _SCHEMA)
        _library.impl(op, lambda *arguments, _op=op: _ops[_op](*arguments), "CompositeImplicitAutograd")
    _ops[op] = adapted
    torch.ops.regard.register_foreign(adapted.text(), adapted.weights)
    return adapted
