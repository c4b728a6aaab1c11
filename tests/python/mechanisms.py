"""What the tests of mechanisms share: calls of any registered mixer or pool with inputs that fit it."""

import json

import pytest
import torch

import regard  # noqa: F401  loads the library

REGISTRY = {entry["id"]: entry for entry in json.loads(torch.ops.regard.registry())}
CASES = [pytest.param(id, json.dumps(config), id=f"{id}-{n}")
         for id, info in REGISTRY.items() if info["role"] != "host" for n, config in enumerate(info["examples"])]


def weights_of(id, config, dtype=torch.float64, spread=0.1):
    """Fresh weights, each moved a little so that zeros and ones are not special."""
    tensors = torch.ops.regard.initialize(id, _text(config), dtype)
    return [t + spread * torch.rand_like(t) if t.is_floating_point() else t for t in tensors]


def named(id, config, weights):
    """The weights by their names."""
    declared = json.loads(torch.ops.regard.declare(id, _text(config)))["weights"]
    return dict(zip([weight["name"] for weight in declared], weights))


def tokens(config, batch=2, length=6, dtype=torch.float64):
    """x (B, N, D)."""
    return torch.randn(batch, length, json.loads(_text(config))["width"], dtype=dtype)


def call(id, config, weights, x, inputs=None, **options):
    """The list of outputs of one call; grid and prefix are given where the mechanism needs them."""
    info = REGISTRY[id]
    if info["needs_grid"] and "grid" not in options:
        options["grid"] = [x.shape[1]]
    if info["needs_prefix"]:
        options.setdefault("prefix", 1)
    inputs = inputs or {}
    return torch.ops.regard.mechanism(id, _text(config), list(weights), x, list(inputs.values()), list(inputs), **options)


def main(id, config, weights, x, inputs=None, **options):
    """The main output of one call."""
    return call(id, config, weights, x, inputs, **options)[0]


def refuses(expected, id, config=None, x=None, weights=None, inputs=None, **options):
    """The call throws ValueError with exactly this text."""
    config = {"width": 8} if config is None else config
    with pytest.raises(ValueError) as error:
        weights = torch.ops.regard.initialize(id, _text(config)) if weights is None else weights
        call(id, config, weights, torch.randn(2, 6, 8) if x is None else x, inputs, **options)
    assert str(error.value) == expected


def decoded(module, x, cuts):
    """What a decode of x in chunks of these lengths gives, joined."""
    cache, steps = None, []
    for chunk in x.split(cuts, 1):
        y, cache = module.decode(chunk, cache)
        steps.append(y)
    return torch.cat(steps, 1)


def gradcheck(function, *inputs, second=True):
    """First and second derivatives, reverse and forward mode."""
    leaves = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    # fast_mode: a random direction each way; every single entry would take minutes.
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    if second:
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    return True


def _text(config):
    return config if isinstance(config, str) else json.dumps(config)
