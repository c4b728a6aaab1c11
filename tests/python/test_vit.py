"""The Vision Transformer host: against golden cases, against plain PyTorch, its properties, any mixer and any pool."""

import json
import math
import os
import pathlib
import re

import pytest
import reference_vit as reference
import torch
from vit_cases import SMALL, close, declared, image, ops, random_weights, run

# ---- golden cases ----------------------------------------------------------------------------------------------------

def golden_files():
    root = pathlib.Path(os.environ.get("REGARD_GOLDEN", pathlib.Path(__file__).parents[1] / "golden"))
    return sorted((root / "vit").glob("*.safetensors"))


OUTPUTS = {port["name"] for m in json.loads(ops.registry()) if m["id"] == "vit" for port in m["outputs"]}


def check_golden_outputs(config, case, weights, x):
    names = [key[4:] for key in case if key.startswith("out.")]
    extra = [name for name in names if name in OUTPUTS]
    results = run(config, weights, x, extra, path="composite")
    for name, found in zip(["out"] + extra, results):
        close(found, case[f"out.{name}"])
    for name in set(names) - set(extra) - {"out"}:
        check_golden_resize(case, name)
    return results[0]


def check_golden_resize(case, name):
    """Any other output is a square grid of positions of the case, resized to one of the grids with so many entries."""
    expected = case[f"out.{name}"].reshape(1, -1, case[f"out.{name}"].shape[-1])
    sources = [value.detach().reshape(1, -1, value.shape[-1]) for key, value in case.items()
               if re.match(r"(in|param)\..*pos", key) and value.shape[-1] == expected.shape[-1]]
    assert sources, f"no positions to make {name} of"
    errors = []
    for source in sources:
        for prefix in range(4):
            count, side = expected.shape[1] - prefix, math.isqrt(max(source.shape[1] - prefix, 0))
            if count < 1 or side < 1 or side * side != source.shape[1] - prefix:
                continue
            grids = [[h, count // h] for h in range(1, count + 1) if count % h == 0]
            errors += [(ops.resize_positions(source, [], grid, prefix) - expected).abs().max().item() for grid in grids]
    assert min(errors) <= 1e-9 * expected.abs().max().item()


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files() or [pytest.param(None, marks=pytest.mark.skip("no golden case"))],
                         ids=lambda path: path.stem if path else "none")
def test_golden(path):
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        case = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    weights = {w["name"]: case[f"param.{w['name']}"].requires_grad_(True) for w in declared(config)}
    assert set(weights) == {key[6:] for key in case if key.startswith("param.")}
    x = case["in.x"].requires_grad_(True)
    out = check_golden_outputs(config, case, weights, x)
    (out * case["w"]).sum().backward()
    largest = max(value.abs().max().item() for key, value in case.items() if key.startswith("grad."))
    for key, value in case.items():
        if not key.startswith("grad."):
            continue
        leaf = x if key == "grad.in.x" else weights.get(key.removeprefix("grad.param."))
        if leaf is None:
            continue
        if value.abs().max().item() <= 1e-12 * largest:  # truly zero, rounding apart
            assert leaf.grad is None or leaf.grad.abs().max().item() <= 1e-12 * largest
        else:
            close(leaf.grad, value)


# ---- against plain PyTorch -------------------------------------------------------------------------------------------

CASES = {
    "classic": {},
    "registers and layer scale": {"img_size": [8, 12], "reg_tokens": 2, "init_values": 0.1},
    "dynamic and padded": {"img_size": 12, "no_embed_class": True, "qk_norm": True, "dynamic_img_size": True,
                           "dynamic_img_pad": True, "global_pool": "map", "size": (8, 19)},
    "dynamic, position of the prefix kept": {"img_size": 12, "reg_tokens": 1, "dynamic_img_size": True, "size": (20, 16)},
    "average": {"global_pool": "avg", "class_token": False},
    "average before the norm": {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
    "maximum": {"global_pool": "max", "reg_tokens": 1},
    "average and maximum": {"global_pool": "avgmax"},
    "refined": {"global_pool": "prr"},
    "refined without class token": {"global_pool": "prr", "class_token": False, "reg_tokens": 1},
    "token after the norm": {"fc_norm": True},
    "tokens": {"global_pool": "", "num_classes": 0},
    "scale norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "pre-norm, few biases": {"pre_norm": True, "qkv_bias": False, "proj_bias": False},
    "no positions, no norm": {"pos_embed": "none", "final_norm": False},
    "distilled": {"distilled": True},
    "map of everything": {"global_pool": "map", "pool_include_prefix": True},
    "rectangular patches": {"img_size": [8, 6], "patch_size": [4, 3]},
    "images cut to whole patches": {"img_size": [9, 11]},
}


@pytest.mark.parametrize("name", CASES)
def test_equals_plain_pytorch(name):
    config = SMALL | CASES[name]
    size = config.pop("size", None)
    weights = random_weights(config)
    x = image(config, size=size).requires_grad_(True)
    expected = reference.forward(config, weights, x)
    found = run(config, weights, x, ["features", "embedded"])
    for tensor, key in zip(found, ("out", "features", "embedded")):
        close(tensor, expected[key])
    leaves = [x, *weights.values()]
    w = torch.randn(found[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad((found[0] * w).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected["out"] * w).sum(), leaves, allow_unused=True)
    largest = max(g.abs().max().item() for g in theirs if g is not None)
    for leaf_ours, leaf_theirs in zip(ours, theirs):
        if leaf_theirs is None or leaf_theirs.abs().max().item() <= 1e-12 * largest:
            assert leaf_ours is None or leaf_ours.abs().max().item() <= 1e-12 * largest
        else:
            close(leaf_ours, leaf_theirs)


@pytest.mark.parametrize("old, new", [((3, 3), (2, 5)), ((3, 3), (5, 4)), ((4, 2), (3, 7)), ((2, 6), (2, 6)),
                                      ((5, 5), (1, 1))])
@pytest.mark.parametrize("prefix", [0, 2])
def test_position_resize(old, new, prefix):
    pos = torch.randn(1, prefix + old[0] * old[1], 6, dtype=torch.float64, requires_grad=True)
    found = ops.resize_positions(pos, list(old), list(new), prefix)
    expected = reference.resize_positions(pos, old, new, prefix)
    close(found, expected, 1e-12)
    w = torch.randn_like(expected)
    close(torch.autograd.grad((found * w).sum(), pos)[0], torch.autograd.grad((expected * w).sum(), pos)[0], 1e-12)
    assert ops.resize_positions(pos.float(), list(old), list(new), prefix).dtype == torch.float32


def test_position_resize_keeps():
    pos = torch.randn(1, 17, 4)
    assert torch.equal(ops.resize_positions(pos, [], [4, 4], 1), pos)
    flat = torch.full((1, 9, 2), 3.0, dtype=torch.float64)
    close(ops.resize_positions(flat, [3, 3], [7, 2], 0), torch.full((1, 14, 2), 3.0, dtype=torch.float64), 1e-14)


def test_patch_kernel_resize_reproduces_the_tokens():
    weight = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    patches = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    larger = ops.resize_patch_kernel(weight, [6, 7])
    matrices = reference.resize_matrix(4, 6), reference.resize_matrix(4, 7)
    resized = torch.einsum("ai,bj,ncij->ncab", *matrices, patches)
    tokens = torch.einsum("ncij,dcij->nd", patches, weight)
    close(torch.einsum("ncij,dcij->nd", resized, larger), tokens, 1e-10)


def test_input_channels():
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    close(ops.adapt_input_channels(weight, 1)[:, 0], weight.sum(1), 1e-15)
    five = ops.adapt_input_channels(weight, 5)
    close(five, torch.cat([weight, weight[:, :2]], 1) * 3 / 5, 1e-15)
    assert torch.equal(ops.adapt_input_channels(weight, 3), weight)


# ---- properties ------------------------------------------------------------------------------------------------------

def test_patch_order_does_not_matter_without_positions():
    config = SMALL | {"pos_embed": "none"}
    weights = random_weights(config)
    x = image(config)
    turned = x.unflatten(3, (2, 4)).flip(3).flatten(3)   # swaps the two columns of patches
    found, other = run(config, weights, x, ["features"]), run(config, weights, turned, ["features"])
    close(other[0], found[0], 1e-12)
    close(other[1][:, [0, 2, 1, 4, 3]], found[1], 1e-12)


def test_zero_layer_scale_leaves_the_embedding():
    config = SMALL | {"init_values": 0.1}
    weights = random_weights(config)
    weights = {k: torch.zeros_like(v) if k.endswith("gamma") else v for k, v in weights.items()}
    out, features, embedded = run(config, weights, image(config), ["features", "embedded"])
    close(features, reference.norm(weights, "norm", embedded), 1e-14)


def test_padding_equals_a_padded_image():
    config = SMALL | {"dynamic_img_size": True, "dynamic_img_pad": True}
    weights = random_weights(config)
    x = image(config, size=(10, 7))
    padded = torch.nn.functional.pad(x, (0, 1, 0, 2))
    assert torch.equal(run(config, weights, x)[0], run(config, weights, padded)[0])


def test_stochastic_depth_and_dropout_average_to_evaluation():
    config = SMALL | {"drop_path_rate": 0.3, "depth": 2}
    weights = {k: v.detach() for k, v in random_weights(config).items()}
    x = image(config, batch=1).expand(4000, -1, -1, -1)
    config_last = config | {"final_norm": False, "num_classes": 0}
    weights = {k: v for k, v in weights.items() if not k.startswith(("norm.", "head."))}
    drawn = run(config_last, weights, x, training=True, seed=torch.tensor(3))[0]
    expected = run(config_last, weights, x[:1])[0]
    error = drawn.std(0) / math.sqrt(len(x))
    assert drawn.std() > 0
    # The attention branch of the last block enters its feed-forward, so only a small bias beyond the noise is allowed.
    assert ((drawn.mean(0) - expected[0]).abs() < 6 * error + 0.15 * expected.abs().max()).all()


def test_training_replays_by_seed_and_evaluation_draws_nothing():
    config = SMALL | {"drop_path_rate": 0.5, "pos_drop_rate": 0.2, "patch_drop_rate": 0.5, "proj_drop_rate": 0.2,
                      "attn_drop_rate": 0.2, "drop_rate": 0.2}
    weights, x = random_weights(config), image(config)
    first, again = (run(config, weights, x, training=True, seed=torch.tensor(7))[0] for _ in range(2))
    other = run(config, weights, x, training=True, seed=torch.tensor(8))[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    before = torch.get_rng_state()
    close(run(config, weights, x)[0], run(SMALL, weights, x)[0], 1e-14)
    assert torch.equal(before, torch.get_rng_state())


def test_patch_dropout_keeps_prefix_and_share():
    config = SMALL | {"img_size": 16, "patch_drop_rate": 0.75, "reg_tokens": 1, "depth": 0, "final_norm": False}
    weights, x = random_weights(config), image(config)
    full = run(config, weights, x, ["embedded"])[1]
    kept = run(config, weights, x, ["embedded"], training=True, seed=torch.tensor(1))[1]
    assert kept.shape == (2, 2 + 4, 12)
    assert torch.equal(kept[:, :2], full[:, :2])
    for sample in range(2):
        rows = [(full[sample] == row).all(-1).nonzero().item() for row in kept[sample]]
        assert len(set(rows)) == len(rows)


def test_maps_and_attention_weights():
    config = SMALL | {"img_size": [8, 12], "out_indices": [-1]}
    weights, x = random_weights(config), image(config)
    out, features, maps, attn = run(config, weights, x, ["features", "maps", "attn"])
    assert maps.shape == (1, 2, 12, 2, 3) and attn.shape == (2, 2, 3, 7, 7)
    last = maps[0].flatten(2).transpose(1, 2)
    close(reference.norm(weights, "norm", last), features[:, 1:], 1e-13)
    close(attn.sum(-1), torch.ones(2, 2, 3, 7, dtype=torch.float64), 1e-13)


def test_distilled_heads():
    config = SMALL | {"distilled": True}
    out, by_class, by_teacher = run(config, random_weights(config), image(config), ["head", "head_dist"])
    close((by_class + by_teacher) / 2, out, 1e-14)


# ---- any mixer, any pool ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mixer", ["softmax-attention", "poolformer"])
@pytest.mark.parametrize("pool", ["mean", "max", "log-sum-exp", "simpool"])
def test_registered_pairs(mixer, pool):
    config = SMALL | {"class_token": False, "mixer": mixer, "pool": pool}
    weights = random_weights(config)
    out = run(config, weights, image(config))[0]
    assert out.shape == (2, 5) and out.isfinite().all()
    names = set(weights)
    assert "fc_norm.weight" in names and "norm.weight" not in names
    assert any(name.startswith("pool.") for name in names) == (pool == "simpool")
    out.sum().backward()
    assert all(w.grad is not None for w in weights.values())


def test_registered_pools_equal_the_built_in_ones():
    x = image(SMALL)
    for ours, theirs in (({"pool": "mean"}, {"global_pool": "avg"}), ({"pool": "max"}, {"global_pool": "max"}),
                         ({"pool": "class-token"}, {"global_pool": "token"})):
        weights = random_weights(SMALL | ours)
        assert list(weights) == list(random_weights(SMALL | theirs))
        close(run(SMALL | ours, weights, x)[0], run(SMALL | theirs, weights, x)[0], 1e-14)


def test_mixer_configuration_is_merged():
    causal = SMALL | {"mixer_config": {"causal": True}, "pos_embed": "none", "pool": "mean", "class_token": False}
    weights, x = random_weights(causal), image(causal)
    changed = x.clone()
    changed[:, :, 4:, 4:] += 1   # the last patch
    first, other = (run(causal, weights, i, ["features"])[1] for i in (x, changed))
    assert torch.equal(first[:, :3], other[:, :3]) and not torch.equal(first[:, 3], other[:, 3])


def test_hidden_tokens():
    config = SMALL | {"pos_embed": "none"}
    weights, x = random_weights(config), image(config)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[:, 4] = True
    changed = x.clone()
    changed[:, :, 4:, 4:] = float("nan")
    found = run(config, weights, x, inputs=[hidden], input_names=["key_hidden"])[0]
    close(run(config, weights, changed, inputs=[hidden], input_names=["key_hidden"])[0], found, 1e-14)
