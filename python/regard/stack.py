"""Containers of mechanisms that connect what their layers publish, consume and lose: `regard.nn.Stack`, `Residual`.

A layer of a `Stack` is a mechanism, a `Residual` or `Stack`, any module of one tensor argument, or a module of your own
that speaks as mechanisms do: lists of names ``consumes``, ``publishes`` and ``losses``, and
``forward(x, *, outputs=(), **inputs)`` that returns (y, {name: tensor}) when outputs are asked for, its losses under
"loss.NAME".
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint as _checkpoint

from .edit import Edit
from .errors import fail, suggestion

__all__ = ["Residual", "Stack"]


def _speaks(layer: torch.nn.Module) -> bool:
    return all(hasattr(layer, name) for name in ("consumes", "publishes", "losses"))


def _names(outputs) -> list[str]:
    return [outputs] if isinstance(outputs, str) else list(outputs)


def _fits(pattern: str, name: str) -> bool:
    """Whether a pattern in which '*' stands for any text names `name`."""
    if "*" not in pattern:
        return pattern == name
    first, *rest = pattern.split("*")
    if not name.startswith(first):
        return False
    place = len(first)
    for part in rest[:-1]:
        found = name.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return len(name) - place >= len(rest[-1]) and name.endswith(rest[-1])


class Residual(torch.nn.Module):
    """y = x + mixer(norm(x)): a mechanism inside a residual branch, for a `Stack`.

    x (B, N, D). `norm` is any module of one argument, none by default. Outputs, inputs and edits are the mixer's.
    """

    def __init__(self, mixer: torch.nn.Module, norm: torch.nn.Module | None = None):
        super().__init__()
        if not _speaks(mixer):
            fail("Residual", "a mechanism, or a module with consumes, publishes and losses", type(mixer).__name__)
        self.norm, self.mixer = norm, mixer

    consumes = property(lambda self: self.mixer.consumes)
    publishes = property(lambda self: self.mixer.publishes)
    losses = property(lambda self: self.mixer.losses)
    caches = property(lambda self: getattr(self.mixer, "caches", []))
    optional_outputs = property(lambda self: getattr(self.mixer, "optional_outputs", False))

    def forward(self, x, *, outputs=(), **call):
        result = self.mixer(x if self.norm is None else self.norm(x), outputs=outputs, **call)
        return (x + result[0], result[1]) if _names(outputs) else x + result

    def decode(self, x, cache=None, *, outputs=(), **call):
        """As `Mechanism.decode`."""
        y, *rest = self.mixer.decode(x if self.norm is None else self.norm(x), cache, outputs=outputs, **call)
        return (x + y, *rest)


class Stack(torch.nn.Module):
    """Layers one after another, y = layer_n(... layer_1(x)), connected by a blackboard.

    What a layer publishes reaches every later layer that consumes the name, until another publishes it; it is computed
    only where somebody reads it. Auxiliary losses are summed: outputs "loss" (all of them) and "loss.NAME". An output
    of a layer is "PLACE.NAME", as in "2.tap.entropy" or "0.attn"; an edit's layer is a place ("2", "*").

    With `checkpoint`, activations of a layer are not kept but recomputed in the backward pass. What a layer publishes
    is an output of the recomputed function, so gradients through it are those without checkpointing.

    Args:
        layers: modules (see this file's head), in order.
        checkpoint: recompute each layer in the backward.
    """

    def __init__(self, layers, checkpoint: bool = False):
        super().__init__()
        layers = list(layers)
        for place, layer in enumerate(layers):
            if not isinstance(layer, torch.nn.Module):
                fail("Stack", "layers to be modules", f"{type(layer).__name__} at {place}")
        self.layers = torch.nn.ModuleList(layers)
        self.checkpoint = checkpoint
        self._check_forms()

    def _speaking(self):
        return [(place, layer) for place, layer in enumerate(self.layers) if _speaks(layer)]

    @property
    def consumes(self) -> list[str]:
        """What a layer consumes and no layer before it publishes."""
        names, published = [], set()
        for _, layer in self._speaking():
            names += [name for name in layer.consumes if name not in published and name not in names]
            published.update(layer.publishes)
        return names

    @property
    def publishes(self) -> list[str]:
        return list(dict.fromkeys(name for _, layer in self._speaking() for name in layer.publishes))

    @property
    def losses(self) -> list[str]:
        return list(dict.fromkeys(name for _, layer in self._speaking() for name in layer.losses))

    def _check_forms(self) -> None:
        """Publisher and consumer of a name agree in type and shape where both say them."""
        forms: dict[str, tuple[int, str]] = {}
        for place, layer in self._speaking():
            for name, form in _forms(layer, "consumes").items():
                if form and forms.get(name, (0, form))[1] not in ("", form):
                    source, other = forms[name]
                    fail("Stack", f"'{name}' of one form, {form} as layer {place} consumes it",
                         f"{other} from layer {source}")
            forms.update({name: (place, form) for name, form in _forms(layer, "publishes").items()})

    def _connections(self) -> dict[int, list[str]]:
        """Of each place what later layers read of it."""
        wanted: dict[int, list[str]] = {}
        last: dict[str, int] = {}
        for place, layer in self._speaking():
            for name in layer.consumes:
                if name in last and name not in wanted.setdefault(last[name], []):
                    wanted[last[name]].append(name)
            last.update({name: place for name in layer.publishes})
        return wanted

    def forward(self, x, *, outputs=(), edits=(), **call):
        """The last layer's output; with `outputs`, (it, {name: tensor}).

        Args:
            x: (B, N, D).
            outputs: "loss", "loss.NAME", "PLACE.NAME", or a name that a layer publishes (the last one's).
            edits: a list of `regard.Edit`.
            call: given to every mechanism: lengths, cu_seqlens, executor, grid, prefix, path, ...
        """
        y, found, _ = self._run(x, _names(outputs), edits, call, None)
        return (y, found) if _names(outputs) else y

    def decode(self, x, cache=None, *, outputs=(), edits=(), **call):
        """One step or chunk of a decode: (output, new cache), with `outputs` a dict of them third.

        Every layer that mixes tokens must decode; others are taken to work on each token by itself.
        """
        if cache is not None and not isinstance(cache, dict):
            fail("Stack", "cache to be a dict of tensors by PLACE.STREAM, as decode returned it", type(cache).__name__)
        for place, layer in self._speaking():
            if not getattr(layer, "caches", None):
                fail("Stack", "layers that decode step by step",
                     f"layer {place}, {type(layer).__name__}, without a cache")
        streams = [stream["name"] for stream in self.caches]
        if cache and set(cache) != set(streams):
            fail("Stack", f"all streams of the cache, {', '.join(streams)}", ", ".join(map(str, cache)))
        y, found, kept = self._run(x, _names(outputs), edits, call, dict(cache or {}))
        return (y, kept, found) if _names(outputs) else (y, kept)

    @property
    def caches(self) -> list[dict]:
        """The streams of a decode, named "PLACE.STREAM"; empty when a layer cannot decode."""
        streams = []
        for place, layer in self._speaking():
            if not getattr(layer, "caches", None):
                return []
            streams += [{**stream, "name": f"{place}.{stream['name']}"} for stream in layer.caches]
        return streams

    def _run(self, x, outputs, edits, call, cache):
        plan = _Plan(self, outputs, edits)
        board = {name: call.pop(name) for name in self.consumes if name in call}
        losses: dict[str, list] = {}
        found, kept = {}, {}
        for place, layer in enumerate(self.layers):
            if not _speaks(layer):
                x = _checkpoint(layer, x, use_reentrant=False) if self._recomputes(cache) else layer(x)
                continue
            inputs = {**call, **{name: board[name] for name in layer.consumes if name in board}}
            names = plan.wanted.get(place, [])
            if plan.edits.get(place):
                inputs["edits"] = plan.edits[place]
            if cache is not None:
                before = f"{place}."
                own = {name.removeprefix(before): t for name, t in cache.items() if name.startswith(before)}
                x, new, *more = layer.decode(x, own or None, outputs=names, **inputs)
                kept.update({before + name: t for name, t in new.items()})
                got = more[0] if more else {}
            elif self._recomputes(cache):
                x, got = _recomputed(layer, x, names, inputs)
            else:
                result = layer(x, outputs=names, **inputs)
                x, got = result if names else (result, {})
            for name in layer.publishes:
                if name in got:
                    board[name] = got[name]
            for name in layer.losses:
                if f"loss.{name}" in got:
                    losses.setdefault(name, []).append(got[f"loss.{name}"])
            found.update({f"{place}.{name}": t for name, t in got.items()})
        return x, plan.collect(outputs, found, board, losses), kept

    def _recomputes(self, cache) -> bool:
        return self.checkpoint and cache is None and torch.is_grad_enabled()

    def extra_repr(self) -> str:
        return "checkpoint=True" if self.checkpoint else ""


def _forms(layer, kind: str) -> dict[str, str]:
    while isinstance(layer, Residual):
        layer = layer.mixer
    info = getattr(layer, "info", None)
    return {port["name"]: port.get("form", "") for port in info[kind]} if isinstance(info, dict) else {}


class _Plan:
    """Which outputs and edits of one call go to which layer."""

    def __init__(self, stack: Stack, outputs: list[str], edits):
        self.wanted: dict[int, list[str]] = {}
        for wanted in outputs:
            self._route(stack, wanted)
        for place, names in stack._connections().items():
            for name in names:
                self._want(place, name, stack.layers[place])
        self.edits: dict[int, list[Edit]] = {}
        for edit in [edits] if isinstance(edits, Edit) else edits:
            if not isinstance(edit, Edit):
                fail("Stack", "edits to be a list of regard.Edit", f"an entry of type {type(edit).__name__}")
            self._place(stack, edit)

    def _want(self, place: int, name: str, layer: torch.nn.Module | None = None) -> None:
        """Asks a layer for an output; of a `layer` given, one that its configuration may leave out."""
        names = self.wanted.setdefault(place, [])
        if name not in names and f"{name}?" not in names:
            names.append(f"{name}?" if getattr(layer, "optional_outputs", False) else name)

    def _route(self, stack: Stack, wanted: str) -> None:
        speaking = stack._speaking()
        head, _, rest = wanted.partition(".")
        if wanted == "loss" or head == "loss":
            places = [(place, name) for place, layer in speaking for name in layer.losses if rest in ("", name)]
            if not places:
                fail("Stack", "a layer with the auxiliary loss that is asked for", f"'{wanted}'")
            for place, name in places:
                self._want(place, f"loss.{name}", stack.layers[place])
        elif head.isdecimal() and rest and int(head) in dict(speaking):
            self._want(int(head), rest)
        elif wanted in stack.publishes:
            self._want(max(place for place, layer in speaking if wanted in layer.publishes), wanted)
        else:
            known = [*stack.publishes, "loss", *[f"loss.{name}" for name in stack.losses]]
            fail("Stack", f"outputs among {', '.join(known)}, PLACE.NAME with a place of a mechanism "
                          f"({', '.join(str(place) for place, _ in speaking) or 'none'})",
                 f"'{wanted}'{suggestion(wanted, known)}")

    def _place(self, stack: Stack, edit: Edit) -> None:
        reached = False
        head, dot, rest = edit.layer.partition(".")
        for place, layer in stack._speaking():
            if not edit.layer or _fits(edit.layer, str(place)):
                own = edit.for_layer("")
            elif dot and _fits(head, str(place)):
                own = edit.for_layer(rest)
            else:
                continue
            reached = True
            self.edits.setdefault(place, []).append(own)
        if not reached:
            fail("Stack", "edits of layers that it has, by their places", f"layer '{edit.layer}'")

    @staticmethod
    def collect(outputs: list[str], found: dict, board: dict, losses: dict) -> dict:
        collected = {}
        for wanted in outputs:
            head, _, rest = wanted.partition(".")
            if head == "loss":
                parts = [part for name, values in losses.items() if rest in ("", name) for part in values]
                if not parts:
                    fail("Stack", "layers whose configuration has the auxiliary loss that is asked for", f"'{wanted}'")
                collected[wanted] = sum(parts[1:], start=parts[0])
            else:
                collected[wanted] = found[wanted] if wanted in found else board[wanted]
        return collected


def _recomputed(layer, x, names: list[str], inputs: dict):
    """(y, outputs) of a layer under checkpointing: all that leaves it are outputs of the recomputed function."""
    tensors = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor)}
    rest = {name: value for name, value in inputs.items() if name not in tensors}

    found: list[str] = []

    def run(x, *values):
        result = layer(x, outputs=names, **rest, **dict(zip(tensors, values)))
        if not names:
            return (result,)
        found[:] = result[1]
        return (result[0], *result[1].values())

    y, *values = _checkpoint(run, x, *tensors.values(), use_reentrant=False)
    return y, dict(zip(found, values))
