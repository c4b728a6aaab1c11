"""What the tests of the Vision Transformer host share: a small configuration, its weights, images, calls."""

import json

import reference_vit as reference
import torch

import regard  # noqa: F401  (loads the library)

ops = torch.ops.regard
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3,
         "mlp_ratio": 2.0}


def declared(config):
    return json.loads(ops.declare("vit", json.dumps(config)))["weights"]


def random_weights(config, seed=0):
    """Weights of a trained look: norms near 1, everything else of order 0.5."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for weight in declared(config):
        value = 0.5 * torch.randn(weight["shape"], generator=generator, dtype=torch.float64)
        if "norm" in weight["name"] and weight["name"].endswith("weight"):
            value = 1 + 0.2 * value
        weights[weight["name"]] = value.requires_grad_(True)
    return weights


def run(config, weights, x, outputs=(), **options):
    return ops.mechanism("vit", json.dumps(config), list(weights.values()), x, outputs=list(outputs), **options)


def image(config, batch=2, size=None, seed=1):
    height, width = size or reference.pair(config.get("img_size", 224))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.get("in_chans", 3), height, width, generator=generator, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    assert found.shape == expected.shape
    scale = expected.abs().max().item() or 1.0
    assert (found - expected).abs().max().item() <= tolerance * scale
