"""Every registered mechanism as a `torch.nn.Module`: ``regard.nn.SimPool(width=192)``.

The classes are made from the engine's registry when they are first named: the C++ source of a mechanism is its only
declaration. `dir(regard.nn)` lists them, `help(regard.nn.SimPool)` documents one, `create("simpool", width=192)` makes
one by its id. Letters' case and hyphens do not matter in a class name.
"""

from __future__ import annotations

import inspect
import json

import torch

from . import _library  # noqa: F401  loads the library that holds the registry
from . import edit as _edit
from .attention import _integer, _path, _seed, _shown
from .describe import SHAPES, documentation, required
from .errors import fail, suggestion
from .stack import Residual, Stack

__all__ = ["Mechanism", "Residual", "Stack", "create", "list_mechanisms", "load", "load_plugin"]

_classes: dict[str, type] = {}
_known: dict[str, dict] = {}


class Weights(torch.nn.Module):
    """Holds weights under a part of their dotted name; it is never called."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name} {tuple(tensor.shape)}"
                         for name, tensor in (*self._parameters.items(), *self._buffers.items()))

    def forward(self, *_):
        raise RuntimeError("[regard] expected a call of the mechanism; found a call of a container of its weights")


class Mechanism(torch.nn.Module):
    """A mechanism with its weights: the base of the classes of this module.

    Parameters and buffers have the official implementation's names. Not a subclass of its own, but made by
    `create(id, **config)` or as `regard.nn.<Name>(**config)`; every one takes device, dtype (default torch's) and
    generator beside its configuration.
    """

    id: str = ""
    info: dict = {}

    def __init__(self, *, device=None, dtype=None, generator=None, **config):
        if not self.id:
            fail("Mechanism", "a mechanism: regard.nn.create(id) or regard.nn.<Name>", "the base class")
        config = config_json(self.id, config)
        device = torch.get_default_device() if device is None else torch.device(device)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self._adopt(config, torch.ops.regard.initialize(self.id, config, dtype, device, generator))

    def _adopt(self, config: str, tensors: list[torch.Tensor]) -> None:
        """Owns the given weights, in declared order."""
        super().__init__()
        declared = json.loads(torch.ops.regard.declare(self.id, config))
        self.config = declared["config"]
        self._config_json = json.dumps(self.config)
        self.caches = declared["caches"]
        self._alias = {w["name"]: w["alias"] for w in declared["weights"] if w["alias"]}
        self._names = [w["name"] for w in declared["weights"]]
        for weight, tensor in zip(declared["weights"], tensors):
            self._place(weight, tensor)

    def _place(self, weight: dict, tensor: torch.Tensor) -> None:
        """The tensor under its dotted name, in nested containers, so that state_dict has the official names."""
        *path, leaf = weight["name"].split(".")
        owner = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, Weights())
            owner = owner._modules[part]
        if weight["alias"]:
            owner.register_parameter(leaf, self.get_parameter(weight["alias"]))
        elif weight["buffer"]:
            owner.register_buffer(leaf, tensor)
        else:
            owner.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def _weights(self) -> list[torch.Tensor]:
        """The tensors of this moment in declared order (`functional_call` and parametrizations replace them)."""
        found: dict[str, torch.Tensor] = {}
        _collect(self, "", found)
        tensors = []
        for name in self._names:
            name = self._alias.get(name, name)
            tensors.append(found[name] if name in found else _by_path(self, name))
        return tensors

    def forward(self, x, *, grid=(), prefix=0, outputs=(), path="auto", seed=None, executor="local", edits=(),
                **inputs):
        """The main output; with `outputs`, (main output, {name: tensor}).

        Args:
            x: (B, N, D) tokens; see the class for other shapes.
            grid: rows and columns of the patch tokens, which stand behind `prefix` tokens that have no place in it.
            outputs: names of outputs beside the main one ("attn"), of what it publishes ("significance"), of losses
                ("loss.balance"), of taps of its attentions: "tap.entropy", "tap.effective_keys", "tap.max",
                "tap.mass:0", "tap.marked_mass", "tap.own_mass", "tap.mean_distance", "tap.sum_of_squares",
                "tap.column_sums", "tap.column_square_sums", "tap.top_k:8", "tap.top_k_index:8", "tap.rows:0,5",
                "tap.blocks:16x16", "tap.offsets:8", "tap.q", "tap.k", "tap.v", "tap.o", "tap.lse"; "@1" behind the name
                is the second attention. A host takes "LAYER.NAME": "blocks.3.attn.tap.entropy", and "loss".
            path: "auto", "fused", "stripe" or "composite", asked of every attention inside.
            seed: int64 scalar tensor that replays the random numbers of a training call.
            executor: "local", "split:4", "stripe", "ring:GROUP": where keys and values are absorbed.
            edits: a list of `regard.Edit`, changes of the attentions inside.
            inputs: the tensors that the class lists as inputs ("memory", "lengths", ...) and consumes; cu_seqlens
                (S + 1) of a packed call, x (1, T, D); "tap.marked" that "tap.marked_mass" reads.
        """
        if not isinstance(x, torch.Tensor):
            fail(self.id, "x to be a tensor", type(x).__name__)
        if not isinstance(grid, (tuple, list, torch.Size)) and grid is not None:
            fail(self.id, "grid to be a list of integers (rows, columns)", _shown(grid))
        grid = [_integer(self.id, "grid's entries", size) for size in grid or ()]
        prefix, seed = _integer(self.id, "prefix", prefix), _seed(self.id, seed)
        names = list(inputs)
        for name in names:
            if not isinstance(inputs[name], torch.Tensor):
                if inputs[name] is None:
                    continue
                known = [port["name"] for kind in ("inputs", "consumes") for port in self.info[kind]]
                if name not in known:
                    fail(self.id, f"inputs among {', '.join(known) or 'none'}",
                         f"'{name}'{suggestion(name, [*known, *_CALL])}")
                fail(self.id, f"input {name} to be a tensor", type(inputs[name]).__name__)
        names = [name for name in names if inputs[name] is not None]
        edits_json, edit_tensors = _edit.pack(self.id, edits, x) if edits else ("", {})
        if edit_tensors:
            inputs, names = {**inputs, **edit_tensors}, [*names, *edit_tensors]
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        results = torch.ops.regard.mechanism(
            self.id, self._config_json, self._weights(), x, [inputs[name] for name in names], names,
            grid, prefix, self.training, seed, outputs, _path(self.id, path), executor, edits_json)
        if not outputs:
            return results[0]
        found = {}
        for name, value in zip(outputs, results[1:]):
            if not name.endswith("?"):
                found[name] = value
            elif value.shape != (0,):  # what the configuration left out is an empty vector
                found[name[:-1]] = value
        return results[0], found

    optional_outputs = True  # "NAME?" is an output that the configuration may leave out

    @property
    def consumes(self) -> list[str]:
        """Names of what earlier layers may publish for it."""
        return [port["name"] for port in self.info["consumes"]]

    @property
    def publishes(self) -> list[str]:
        """Names of what it leaves for later layers."""
        return [port["name"] for port in self.info["publishes"]]

    @property
    def losses(self) -> list[str]:
        """Names of its auxiliary losses, outputs "loss.NAME"."""
        return [port["name"] for port in self.info["losses"]]

    def decode(self, x, cache=None, *, outputs=(), **call):
        """One step, or one chunk, of a decode: (main output, new cache), with `outputs` a dict of them third.

        Chunks of any size give what one call on the whole sequence gives. A cache is a dict of plain tensors that
        belongs to the caller: `self.caches` lists its streams (append: every token's entry along dimension -2; ring:
        the last ones'; state: one entry a sequence), and an older one starts the decode again from where it was taken.

        Args:
            x: (B, n, D) the next n tokens of every sequence.
            cache: {stream: tensor} as the step before returned it; None at the start.
            call: what `forward` takes.

        Errors: a configuration without a cache, streams missing or of another shape, by name.
        """
        if not self.caches:
            fail(self.id, "a configuration that decodes step by step", f"one without a cache, {self._config_json}")
        if cache is not None and not isinstance(cache, dict):
            fail(self.id, "cache to be a dict of tensors by stream, as decode returned it", type(cache).__name__)
        cache = dict(cache or {})
        for name, tensor in cache.items():
            if not isinstance(tensor, torch.Tensor):
                fail(self.id, f"a tensor for the stream '{name}' of the cache (no cache at the start)", _shown(tensor))
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        streams = [f"cache.{stream['name']}" for stream in self.caches]
        y, found = self(x, outputs=[*outputs, *streams], **call, **{f"cache.{name}": t for name, t in cache.items()})
        cache = {name.removeprefix("cache."): found.pop(name) for name in streams}
        return (y, cache, found) if outputs else (y, cache)

    def save(self, path) -> None:
        """Writes the weights, the id and the configuration to one safetensors file, whole or not at all."""
        torch.ops.regard.save_checkpoint(str(path), self.id, self._config_json, [t.detach() for t in self._weights()])

    def extra_repr(self) -> str:
        default = {field["name"]: field["default"] for field in self.info["config"]}
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items() if value != default.get(name))


_CALL = ("grid", "prefix", "outputs", "path", "seed", "executor", "edits")


def config_json(id: str, config: dict) -> str:
    """The configuration as the engine reads it."""
    try:
        return json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(id, "a configuration of numbers, strings, lists and dicts", str(error))
        raise


def _collect(module: torch.nn.Module, prefix: str, found: dict) -> None:
    for name, tensor in module._parameters.items():
        found[prefix + name] = tensor
    for name, tensor in module._buffers.items():
        found[prefix + name] = tensor
    for name, child in module._modules.items():
        if isinstance(child, torch.nn.Module):
            _collect(child, f"{prefix}{name}.", found)


def _by_path(module: torch.nn.Module, name: str) -> torch.Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


# ---- the registry ------------------------------------------------------------------------------------------------


def _registry(refresh: bool = False) -> dict[str, dict]:
    if refresh or not _known:
        for entry in json.loads(torch.ops.regard.registry()):
            _known[entry["id"]] = entry
    return _known


def list_mechanisms(role: str | None = None, family: str | None = None) -> list[str]:
    """The ids of the registered mechanisms, sorted by family; of one role ("mixer", "pool", "reducer", "host")
    or family."""
    entries = _registry(refresh=True).values()
    roles, families = {entry["role"] for entry in entries}, {entry["family"] for entry in entries}
    for name, value, values in (("role", role, roles | set(SHAPES)), ("family", family, families)):
        if value is not None and value not in values:
            fail("list_mechanisms", f"{name} among {', '.join(sorted(values))}",
                 f"{value!r}{suggestion(value, values)}")
    return [entry["id"] for entry in entries if role in (None, entry["role"]) and family in (None, entry["family"])]


def create(id: str, **config) -> Mechanism:
    """The mechanism `id` with the given configuration; also takes device, dtype and generator."""
    return class_of(id)(**config)


def load(path, device=None, dtype=None) -> Mechanism:
    """The mechanism that `Mechanism.save` wrote to a file, with its weights; device and dtype default to the file's."""
    id, config, tensors = torch.ops.regard.load_checkpoint(str(path))
    return own(id, config, tensors).to(device=device, dtype=dtype)


def own(id: str, config: str, tensors: list[torch.Tensor]) -> Mechanism:
    """A module around given weights, in declared order."""
    kind = class_of(id)
    module = kind.__new__(kind)
    module._adopt(config, tensors)
    return module


def load_plugin(library: str) -> list[str]:
    """Opens a shared library that registers more mechanisms; returns their ids."""
    before = set(_registry(refresh=True))
    torch.ops.regard.load_plugin(str(library))
    return [id for id in _registry(refresh=True) if id not in before]


def class_of(id: str) -> type[Mechanism]:
    """The class of a mechanism by its id."""
    known = _registry()
    if id not in known:
        known = _registry(refresh=True)
    if id not in known:
        fail("create", f"a mechanism among {', '.join(known)}", f"{id!r}{suggestion(str(id), known)}")
    if id not in _classes:
        _classes[id] = _make(known[id])
    return _classes[id]


def _compact(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def class_name(info: dict) -> str:
    """CamelCase of the id, with the inner capitals that the mechanism's own text gives the word (simpool: SimPool)."""
    text = f"{info['title']} {info['equation']} {info['paper']}"
    for word in "".join(c if c.isalnum() else " " for c in text).split():
        if word.lower() == _compact(info["id"]) and word[0].isupper():
            return word
    return "".join(part[:1].upper() + part[1:] for part in info["id"].split("-"))


def _make(info: dict) -> type[Mechanism]:
    parameters = [inspect.Parameter(field["name"], inspect.Parameter.KEYWORD_ONLY,
                                    default=inspect.Parameter.empty if required(field) else field["default"])
                  for field in info["config"]]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                   for name in ("device", "dtype", "generator")]
    return type(class_name(info), (Mechanism,), {
        "__module__": __name__, "__doc__": documentation(info), "__signature__": inspect.Signature(parameters),
        "id": info["id"], "info": info})


def __getattr__(name: str):
    if name.startswith("_"):
        raise AttributeError(name)
    for refresh in (False, True):
        known = _registry(refresh)
        for id in known:
            if _compact(id) == _compact(name):
                return class_of(id)
    names = [class_name(info) for info in known.values()]
    raise AttributeError(f"[regard.nn] expected a mechanism among {', '.join(names)}; found '{name}'"
                         f"{suggestion(name, names)}")


def __dir__():
    return sorted([*__all__, *(class_name(info) for info in _registry(refresh=True).values())])
