"""The weights of the Vision Transformer host: sizes, names, initialization, checkpoints of other code."""

import json
import math

import pytest
import reference_vit as reference
import torch
from vit_cases import SMALL, close, declared, ops, random_weights

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
