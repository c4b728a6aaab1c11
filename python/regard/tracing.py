"""The theorems about torch's tracers: a compiled call and an exported program give what the call gives.

The suite (regard/check) asks for their entries through the op regard_python::theorem, which importing this registers.
Both run through torch.ops.regard.mechanism, as every owner of a mechanism does, on its example configurations.
"""

from __future__ import annotations

import json
import logging

import torch

THEOREMS = {
    "compile": "torch.compile (aot_eager, one graph, any length) gives the same output and gradients",
    "export": "an exported program gives the same output at other lengths",
}
_TOLERANCE = 1e-11  # the same operations; the compiler may order sums in another way
_LENGTHS = (6, 9)  # traced at the first, run at both


class _Call(torch.nn.Module):
    """One mechanism of one configuration as a module of its weights."""

    def __init__(self, info: dict, config: str, weights: list[torch.Tensor]):
        super().__init__()
        self.info, self.config = info, config
        self.own = torch.nn.ParameterList([torch.nn.Parameter(w, requires_grad=w.is_floating_point()) for w in weights])

    def forward(self, x):
        grid = [x.shape[1]] if self.info["needs_grid"] else []
        if grid and self.info["needs_prefix"]:
            grid = [x.shape[1] - 1]
        return torch.ops.regard.mechanism(self.info["id"], self.config, list(self.own), x, grid=grid,
                                          prefix=int(self.info["needs_prefix"]))[0]


def _entry(theorem: str, **more) -> dict:
    entry = {"theorem": theorem, "statement": THEOREMS[theorem], "outcome": "pass", "reason": "", "error": 0.0,
             "tolerance": _TOLERANCE, "exact": True, "paths": [], "cases": 0, "claims": 0, "failures": 0,
             "failed_claims": {}, "notes": [], "counterexample": None}
    return entry | more


def _configurations(info: dict) -> list[str]:
    """The first example and the last one, which has the most options, and the first causal and noncausal ones.

    Tracing costs seconds a configuration, and what it may stumble over (a length read as a number, a branch on data)
    lies in the code that these share.
    """
    default = {field["name"]: field["default"] for field in info["config"]}
    configs = [dict(example) for example in info["examples"]]
    if "causal" in default and not any(c.get("causal", default["causal"]) for c in configs):
        configs.append({**configs[0], "causal": True})
    chosen = [configs[0], configs[-1]]
    for causal in (False, True):
        chosen += [c for c in configs if bool(c.get("causal", default.get("causal", False))) == causal][:1]
    return list(dict.fromkeys(json.dumps(config) for config in chosen))


def _sample(info: dict, config: str, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if info["role"] == "host":
        values = json.loads(torch.ops.regard.declare(info["id"], config))["config"]
        size = values["img_size"] if isinstance(values["img_size"], list) else [values["img_size"]]
        size = size * 2 if len(size) == 1 else size
        return torch.randn(length - 4, values["in_chans"], *size, dtype=torch.float64, generator=generator)
    width = json.loads(config)["width"]
    return torch.randn(2, length, width, dtype=torch.float64, generator=generator)


def _weights(id: str, config: str, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ops.regard.initialize(id, config, torch.float64, None, generator)
    return [w + 0.1 * torch.randn(w.shape, dtype=w.dtype, generator=generator) if w.is_floating_point() else w
            for w in weights]


def _error(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    gap = (expected - found).abs().max().item() / (expected.abs().max().item() or 1.0)
    return gap if gap == gap else float("inf")


def _differentiated(call, x: torch.Tensor, parameters) -> list[torch.Tensor]:
    x = x.clone().requires_grad_(True)
    y = call(x)
    leaves = [x, *(p for p in parameters if p.requires_grad)]
    gradients = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients))]


def _compiled(call: _Call, samples: list[torch.Tensor]) -> list[tuple[str, float]]:
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    errors = []
    for x in samples:
        expected = _differentiated(call, x, call.parameters())
        found = _differentiated(compiled, x, call.parameters())
        errors.append((f"compiled output at {tuple(x.shape)} equals the call's", _error(expected[0], found[0])))
        errors += [(f"compiled gradients at {tuple(x.shape)} equal the call's", _error(e, f))
                   for e, f in zip(expected[1:], found[1:])]
    return errors


def _exported(call: _Call, samples: list[torch.Tensor]) -> list[tuple[str, float]]:
    host = call.info["role"] == "host"
    dynamic = {0: torch.export.Dim.AUTO} if host else {1: torch.export.Dim.AUTO}
    program = torch.export.export(call, (samples[0],), dynamic_shapes={"x": dynamic}).module()
    with torch.no_grad():
        return [(f"exported program at {tuple(x.shape)} equals the call", _error(call(x), program(x))) for x in samples]


_RUN = {"compile": _compiled, "export": _exported}


def entry(theorem: str, id: str, seed: int = 0) -> dict:
    """The report's entry of one of THEOREMS on the mechanism `id`."""
    info = json.loads(torch.ops.regard.describe(id))
    result = _entry(theorem)
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        for config in _configurations(info):
            _hold(theorem, info, config, seed, result)
    finally:
        logging.getLogger("torch").setLevel(level)
    chosen = len(_configurations(info))
    if chosen < len(info["examples"]):
        result["notes"].append(f"{chosen} of {len(info['examples'])} example configurations")
    if result["claims"] == 0:
        reason = result["notes"][0] if result["notes"] else "no example configuration runs without further inputs"
        return _entry(theorem, outcome="not applicable", reason=reason)
    result["exact"] = result["error"] == 0
    if result["error"] == float("inf"):
        result["error"] = "infinite"
    return result


def _hold(theorem: str, info: dict, config: str, seed: int, result: dict) -> None:
    foreign = info["family"] == "foreign"
    weights = _weights(info["id"], config, seed)
    samples = [_sample(info, config, length, seed + length) for length in _LENGTHS]
    call = _Call(info, config, weights)
    try:
        with torch.no_grad():
            call(samples[0]), call(samples[1])
    except (ValueError, RuntimeError) as error:  # cross-attention alone, a fixed length, ...
        note = f"a call is refused: {str(error).splitlines()[0]}"
        result["notes"] += [note] if note not in result["notes"] else []
        return
    try:
        errors = _RUN[theorem](call, samples)
    except Exception as error:  # the tracers raise what they like
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if foreign:
            note = f"torch's tracer refuses it: {line}"
            result["notes"] += [note] if note not in result["notes"] else []
            return
        errors = [(f"the call is traced; raised: {line}", float("inf"))]
    result["cases"] += 1
    if "auto" not in result["paths"]:
        result["paths"].append("auto")
    for claim, error in errors:
        _record(result, claim, error, config, samples[0])


def _record(result: dict, claim: str, error: float, config: str, x: torch.Tensor) -> None:
    result["claims"] += 1
    result["error"] = max(result["error"], error)
    if error <= _TOLERANCE:
        return
    result["failures"] += 1
    result["failed_claims"][claim] = result["failed_claims"].get(claim, 0) + 1
    if result["counterexample"] is None:
        result |= {"outcome": "fail", "reason": claim, "counterexample": {
            "claim": claim, "config": json.loads(config), "inputs": f"x {tuple(x.shape)}", "path": "auto", "index": [],
            "error": error if error < float("inf") else "infinite", "expected": 0.0, "found": 0.0, "tokens": {}}}


_library = torch.library.Library("regard_python", "FRAGMENT")
_library.define("theorem(str name, str id, int seed) -> str")
_library.impl("theorem", lambda name, id, seed: json.dumps(entry(name, id, seed)), "CompositeExplicitAutograd")
