"""The Vision Transformer host: against golden cases, against plain PyTorch, its options, its checkpoints, its errors."""

import json
import math
import os
import pathlib
import re

import pytest
import torch

import regard  # noqa: F401  (loads the library)
import reference_vit as reference

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


@pytest.mark.parametrize("old, new", [((3, 3), (2, 5)), ((3, 3), (5, 4)), ((4, 2), (3, 7)), ((2, 6), (2, 6)), ((5, 5), (1, 1))])
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


# ---- sizes, initialization -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, count", [
    ("vit_tiny", 5717416), ("vit_small", 22050664), ("vit_base", 86567656), ("vit_large", 304326632),
    ("vit_huge", 630764800), ("deit_tiny", 5717416), ("deit_tiny_distilled", 5910800), ("deit3_small", 22059496)])
def test_parameter_counts(name, count):
    config = json.loads(ops.vit_preset(name))
    # Published counts: the huge size without its head, the others with 1000 classes.
    if name == "vit_huge":
        config["num_classes"] = 0
    assert sum(math.prod(w["shape"]) for w in declared(config)) == count


def test_names_are_timms():
    names = [w["name"] for w in declared(SMALL | {"depth": 1, "reg_tokens": 1, "init_values": 0.1, "qk_norm": True})]
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.q_norm.weight", "attn.q_norm.bias",
             "attn.k_norm.weight", "attn.k_norm.bias", "attn.proj.weight", "attn.proj.bias", "ls1.gamma", "norm2.weight",
             "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma"]
    assert set(names) == {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
                          "norm.weight", "norm.bias", "head.weight", "head.bias"} | {f"blocks.0.{n}" for n in block}


def initialized(**options):
    config = SMALL | {"embed_dim": 96, "num_heads": 3, "num_classes": 64} | options
    names = [w["name"] for w in declared(config)]
    return dict(zip(names, ops.initialize("vit", json.dumps(config), generator=torch.Generator().manual_seed(0))))


def test_initialization():
    usual = initialized()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "head.weight"):
        assert usual[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert usual["cls_token"].abs().max() < 1e-5 and usual["blocks.0.attn.qkv.bias"].abs().max() == 0
    assert usual["patch_embed.proj.weight"].abs().max() <= 1 / math.sqrt(2 * 16)
    fixed = initialized(fix_init=True)
    assert fixed["blocks.1.mlp.fc2.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert fixed["blocks.1.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    jax = initialized(weight_init="jax_nlhb")
    assert jax["head.weight"].abs().max() == 0 and jax["head.bias"][0].item() == pytest.approx(-math.log(64))
    assert jax["blocks.0.attn.qkv.weight"].abs().max().item() == pytest.approx(math.sqrt(6 / (4 * 96)), rel=0.01)
    assert 0 < jax["blocks.0.mlp.fc1.bias"].abs().max() < 1e-5
    moco = initialized(weight_init="moco")
    assert moco["blocks.0.attn.qkv.weight"].abs().max().item() == pytest.approx(math.sqrt(6 / (2 * 96)), rel=0.01)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

def test_save_and_load(tmp_path):
    config = SMALL | {"distilled": True}
    weights = [w.detach() for w in random_weights(config).values()]
    path = str(tmp_path / "vit.safetensors")
    ops.save_checkpoint(path, "vit", json.dumps(config), weights)
    id, text, loaded = ops.load_checkpoint(path)
    assert id == "vit" and json.loads(text)["distilled"] is True
    assert all(torch.equal(a, b) for a, b in zip(weights, loaded, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["vit.safetensors"]
    from safetensors.torch import load_file
    assert set(load_file(path)) == set(random_weights(config))


def test_load_refuses(tmp_path):
    from safetensors.torch import save_file
    weights = {k: v.detach() for k, v in random_weights(SMALL).items()}
    path = str(tmp_path / "x.safetensors")
    save_file(weights, path)
    with pytest.raises(ValueError, match="'mechanism' and 'config' in its metadata"):
        ops.load_checkpoint(path)
    metadata = {"mechanism": "vit", "config": json.dumps(SMALL)}
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, path, metadata)
    with pytest.raises(ValueError, match=r"\[vit\] expected weight head.bias in .*; found none"):
        ops.load_checkpoint(path)
    save_file(weights | {"head.bais": weights["head.bias"].clone()}, path, metadata)
    with pytest.raises(ValueError, match="'head.bais'; did you mean 'head.bias'"):
        ops.load_checkpoint(path)


@pytest.mark.parametrize("family", ["timm", "deit", "deit3", "google", "huggingface"])
def test_foreign_names_round_trip(family):
    config = SMALL | ({"init_values": 0.1, "no_embed_class": True} if family == "deit3" else {})
    weights = {k: v.detach() for k, v in random_weights(config).items()}
    foreign, names = ops.convert_checkpoint(family, list(weights.values()), list(weights), True, 3)
    assert len(set(names)) == len(names)
    back, ours = ops.convert_checkpoint(family, foreign, names)
    assert set(ours) == set(weights)
    for name, tensor in zip(ours, back):
        assert torch.equal(tensor, weights[name]), name


def test_google_layout():
    weights = {k: v.detach() for k, v in random_weights(SMALL).items()}
    foreign, names = ops.convert_checkpoint("google", list(weights.values()), list(weights), True, 3)
    arrays = dict(zip(names, foreign))
    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    assert arrays["embedding/kernel"].shape == (4, 4, 2, 12)
    assert arrays[f"{attention}/key/kernel"].shape == (12, 3, 4) and arrays[f"{attention}/key/bias"].shape == (3, 4)
    assert arrays[f"{attention}/out/kernel"].shape == (3, 4, 12)
    # The key of head 2 for x: x . kernel[:, 2], as Flax computes it.
    x = torch.randn(12, dtype=torch.float64)
    qkv = weights["blocks.1.attn.qkv.weight"] @ x
    close(torch.einsum("d,de->e", x, arrays[f"{attention}/key/kernel"][:, 2]), qkv[12 + 8:12 + 12], 1e-14)
    heads = torch.randn(3, 4, dtype=torch.float64)
    close(torch.einsum("he,hed->d", heads, arrays[f"{attention}/out/kernel"]),
          weights["blocks.1.attn.proj.weight"] @ heads.flatten(), 1e-14)
    back, ours = ops.convert_checkpoint("google", foreign, [f"opt/target/{n}" for n in names])
    assert set(ours) == set(weights)


def test_huggingface_names():
    weights = {k: v.detach() for k, v in random_weights(SMALL).items()}
    foreign, names = ops.convert_checkpoint("huggingface", list(weights.values()), list(weights), True)
    layer = "vit.encoder.layer.0.attention.attention"
    arrays = dict(zip(names, foreign))
    assert torch.equal(arrays[f"{layer}.value.weight"], weights["blocks.0.attn.qkv.weight"][24:])
    assert "classifier.weight" in arrays and "vit.layernorm.weight" in arrays
    with pytest.raises(ValueError, match="expected query, key and value of blocks.0.attn.qkv.weight; found no key"):
        kept = [n for n in names if n != f"{layer}.key.weight"]
        ops.convert_checkpoint("huggingface", [arrays[n] for n in kept], kept)
    with pytest.raises(ValueError, match="names of the family 'huggingface'; found 'extra'"):
        ops.convert_checkpoint("huggingface", [torch.ones(1)], ["extra"])


def test_wrappers_and_flat_patches():
    weights = {k: v.detach() for k, v in random_weights(SMALL | {"in_chans": 3}).items()}
    wrapped = {f"model.{k}": v for k, v in weights.items()} | {"optimizer.step": torch.ones(1)}
    wrapped["model.patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].flatten(1)
    wrapped["model.pre_logits.fc.weight"] = torch.ones(2)
    back, names = ops.convert_checkpoint("deit", list(wrapped.values()), list(wrapped))
    assert set(names) == set(weights)
    assert all(torch.equal(t, weights[n]) for n, t in zip(names, back))


def test_fit_to_another_resolution():
    old, new = SMALL | {"in_chans": 3}, SMALL | {"img_size": [20, 10], "patch_size": 5, "in_chans": 1}
    weights = {k: v.detach() for k, v in random_weights(old).items()}
    fitted = ops.fit_vit(json.dumps(new), list(weights.values()), list(weights))
    by_name = dict(zip([w["name"] for w in declared(new)], fitted))
    close(by_name["pos_embed"], reference.resize_positions(weights["pos_embed"], (2, 2), (4, 2), 1), 1e-13)
    assert by_name["patch_embed.proj.weight"].shape == (12, 1, 5, 5)
    with pytest.raises(ValueError, match=r"\[vit\] expected weight head.weight \(7, 12\) in .*; found \(5, 12\)"):
        ops.fit_vit(json.dumps(old | {"num_classes": 7}), list(weights.values()), list(weights))


# ---- tracing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True, "global_pool": "map"},
                                     {"pool": "simpool", "mixer": "poolformer", "class_token": False}])
def test_compiles_whole_with_any_batch(options):
    config = SMALL | options
    weights = random_weights(config)

    text = json.dumps(config)

    def call(x, *tensors):
        return ops.mechanism("vit", text, list(tensors), x)[0]

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = image(config, batch=batch)
        close(compiled(x, *weights.values()), call(x, *weights.values()), 1e-12)


# ---- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, message", [
    ({"num_heads": 5}, r"\[vit\] expected embed_dim to be a multiple of num_heads 5; found 12"),
    ({"class_token": False}, "expected class_token true with global_pool 'token'; found class_token false"),
    ({"mixer": "poolformer"}, "with the mixer 'poolformer', which has no place for tokens outside the grid; found 1"),
    ({"mixer": "poolformer", "class_token": False, "reg_tokens": 2, "pool": "mean"}, "reg_tokens 0 .*found 2"),
    ({"pool": "class-token", "class_token": False}, "the pool 'class-token', which reads the class token"),
    ({"pool": "mean", "global_pool": "avg"}, "expected either pool or global_pool; found pool 'mean'"),
    ({"mixer": "softmax-atention"}, "did you mean 'softmax-attention'"),
    ({"mixer": "simpool"}, "expected mixer to name a mixer; found 'simpool', which is none"),
    ({"pool": "poolformer"}, "expected pool to name a pool"),
    ({"global_pool": "averge"}, "global_pool to be one of .*found 'averge'"),
    ({"patch_size": 16}, "expected img_size of at least patch_size 16x16; found 8x8"),
    ({"img_size": [1, 2, 3]}, "img_size to be one size or two"),
    ({"drop_rate": 1.0}, r"drop_rate in \[0, 1\)"),
    ({"distilled": True, "global_pool": "avg"}, "global_pool 'token' with distilled"),
    ({"img_size": 10, "dynamic_img_pad": True}, "dynamic_img_size true with dynamic_img_pad"),
    ({"out_indices": [2]}, r"out_indices in \[-depth, depth\); found 2"),
    ({"weight_init": "jaxx"}, "weight_init to be one of"),
    ({"mixer_config": {"widht": 3}}, "widht"),
    ({"pool_config": {"gamma": 2.0}}, "pool_config only with pool"),
    ({"embed": 3}, "'embed'"),
])
def test_configurations_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ops.declare("vit", json.dumps(SMALL | options))


@pytest.mark.parametrize("options, size, message", [
    ({}, (8, 12), r"\[vit\] expected an image of 8x8 \(or dynamic_img_size true\); found 8x12"),
    ({"dynamic_img_size": True}, (8, 10), r"patches of 4x4 divide \(or dynamic_img_pad true\); found 8x10"),
])
def test_images_refused(options, size, message):
    config = SMALL | options
    with pytest.raises(ValueError, match=message):
        run(config, random_weights(config), image(config, size=size))


def test_calls_refused():
    weights = random_weights(SMALL)
    for x in (torch.zeros(2, 2, 8, dtype=torch.float64), torch.zeros(2, 3, 8, 8, dtype=torch.float64),
              torch.zeros(2, 2, 8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\[vit\] expected an image \(B, 2, H, W\)"):
            run(SMALL, weights, x)
    with pytest.raises(ValueError, match="'head' and 'head_dist'"):
        run(SMALL, weights, image(SMALL), ["head"])
    with pytest.raises(ValueError, match="vit_base"):
        ops.vit_preset("vit_bas")
    with pytest.raises(ValueError, match="old_grid"):
        ops.resize_positions(torch.zeros(1, 7, 2), [], [2, 2], 0)
    with pytest.raises(ValueError, match="new_grid to be two sizes"):
        ops.resize_positions(torch.zeros(1, 4, 2), [], [2, 0], 0)


@pytest.mark.parametrize("changes", [{}, {"pool": "simpool"}, {"mixer": "poolformer", "class_token": False,
                                                               "global_pool": "avg"}], ids=str)
def test_training_without_drops_draws_nothing(changes):
    """torch's generator stays where it is, so that per-sample gradients work: vmap refuses random numbers."""
    model = regard.models.ViT(**{**SMALL, **changes}).train()
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 2, 8, 8)

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x[None],)).square().sum()

    before = torch.get_rng_state()
    single = torch.func.grad(loss)(parameters, x[1])
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    assert torch.equal(torch.get_rng_state(), before)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient[1], single[name], rtol=1e-3, atol=1e-4)
    assert sum(gradient.abs().sum() for gradient in found.values()) > 0


def test_training_with_drops_draws():
    """Each mixer replays its own stream: a seed decides everything."""
    model = regard.models.ViT(**SMALL, attn_drop_rate=0.5, proj_drop_rate=0.3).train()
    x = torch.randn(3, 2, 8, 8)
    before = torch.get_rng_state()
    assert not torch.equal(model(x), model(x))
    assert not torch.equal(torch.get_rng_state(), before)
    first, again = (model(x, seed=torch.tensor(7)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, model(x, seed=torch.tensor(8)))


def test_mixers_are_as_wide_as_the_host():
    with pytest.raises(ValueError, match=r"\[vit\] expected mixer_config without width, or with embed_dim 12; found 99"):
        regard.models.ViT(**SMALL, mixer_config={"width": 99})
    regard.models.ViT(**SMALL, mixer_config={"width": 12})
