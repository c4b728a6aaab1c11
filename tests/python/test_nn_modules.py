"""Every registered mechanism as a torch.nn.Module."""

import copy
import inspect
import io
import json
import pickle
import pydoc
import subprocess
import sys

import pytest
import regard
import torch
from test_attention import close
from test_compile import ENTRIES, EXAMPLES, inputs_of

every = pytest.mark.parametrize("id, example", EXAMPLES)


def make(id, example, **options):
    config = json.loads(example)
    options.setdefault("dtype", torch.float64)
    module = regard.nn.create(id, **config, **options)
    x, call = inputs_of(ENTRIES[id], config, module)
    return module.eval(), lambda m=module: m(x.to(options["dtype"]), **{
        n: c.to(options["dtype"]) if isinstance(c, torch.Tensor) else c for n, c in call.items()})


@every
def test_state_dict_has_the_declared_names(id, example):
    module, _ = make(id, example)
    declared = json.loads(torch.ops.regard.declare(id, example))["weights"]
    assert list(module.state_dict()) == [w["name"] for w in declared] or set(module.state_dict()) == {
        w["name"] for w in declared}
    for weight in declared:
        tensor = module.state_dict()[weight["name"]]
        assert list(tensor.shape) == weight["shape"]
    assert {name for name, _ in module.named_buffers()} == {w["name"] for w in declared if w["buffer"]}


@every
def test_state_dict_round_trip(id, example):
    (one, run), (other, _) = make(id, example), make(id, example)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.01 * torch.randn_like(p))
    other.load_state_dict(one.state_dict())
    assert torch.equal(run(one), run(other))


@every
def test_copies(id, example):
    module, run = make(id, example)
    expected = run()
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(stored, weights_only=False)):
        assert type(other) is type(module) and other.config == module.config
        assert torch.equal(run(other), expected)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1.0)
    assert torch.equal(run(), expected)  # copies share nothing


@every
def test_dtype_and_device(id, example):
    module, run = make(id, example, dtype=torch.float32)
    assert run().dtype == torch.float32
    assert module.to(torch.float64) is module
    assert all(p.dtype == torch.float64 for p in module.parameters() if p.is_floating_point())
    meta = regard.nn.create(id, **json.loads(example), device="meta")
    assert all(t.is_meta for t in meta.state_dict().values())
    with torch.device("meta"):
        assert all(t.is_meta for t in regard.nn.create(id, **json.loads(example)).state_dict().values())


@every
def test_hooks_and_functional_call(id, example):
    module, run = make(id, example)
    calls = []
    module.register_forward_hook(lambda m, args, output: calls.append(output))
    expected = run()
    assert calls and calls[0] is expected
    weights = {n: p.detach() * 0.5 for n, p in module.named_parameters()}
    if not weights:
        return

    halved = copy.deepcopy(module)
    with torch.no_grad():
        for p in halved.parameters():
            p.mul_(0.5)
    config = json.loads(example)
    x, call = inputs_of(ENTRIES[id], config, module)
    got = torch.func.functional_call(module.eval(), weights, (x,), call)
    torch.testing.assert_close(got, halved.eval()(x, **call), rtol=1e-12, atol=1e-14)


@every
def test_gradients_reach_every_parameter(id, example):
    module, run = make(id, example)
    if not list(module.parameters()):
        return
    run().square().sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@every
def test_fresh_weights_follow_the_generator(id, example):
    config = json.loads(example)
    make = lambda seed: regard.nn.create(id, **config, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    for a, b in zip(make(3).state_dict().values(), make(3).state_dict().values()):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    first = regard.nn.create(id, **config)
    torch.manual_seed(5)
    for a, b in zip(first.state_dict().values(), regard.nn.create(id, **config).state_dict().values()):
        assert torch.equal(a, b)


@every
def test_documentation(id, example):
    entry, kind = ENTRIES[id], type(make(id, example)[0])
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for part in (entry["title"].rstrip("."), entry["equation"], entry["paper"], entry["family"]):
        assert part in text
    flat = " ".join(" ".join(line.removeprefix(" |") for line in text.splitlines()).split())
    for field in entry["config"]:
        assert f"{field['name']} (" in flat and " ".join(field["doc"].split()) in flat
    for port in entry["inputs"] + entry["outputs"]:
        assert " ".join(f"{port['name']}: {port['doc']}".split()) in flat
    names = list(inspect.signature(kind).parameters)
    assert names == [field["name"] for field in entry["config"]] + ["device", "dtype", "generator"]


@every
def test_files(id, example, tmp_path):
    module, run = make(id, example)
    module.save(tmp_path / "weights.safetensors")
    other = regard.load(tmp_path / "weights.safetensors").eval()
    assert type(other) is type(module) and other.config == module.config
    assert torch.equal(run(other), run())
    assert regard.load(tmp_path / "weights.safetensors", dtype=torch.float32).eval().state_dict().keys() == \
        module.state_dict().keys()
    with pytest.raises(ValueError, match="nothing.safetensors"):
        regard.load(tmp_path / "nothing.safetensors")


def test_weights_of_timms_names_and_another_size():
    config = {"patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 2}
    small = regard.models.ViT(img_size=8, **config).eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(regard.models.from_timm(small.state_dict(), img_size=8, **config).eval()(x), small(x))
    large = regard.models.from_timm(small.state_dict(), img_size=12, **config)
    assert large.state_dict()["pos_embed"].shape == (1, 37, 8)
    assert torch.equal(large.get_parameter("blocks.0.attn.qkv.weight"), small.get_parameter("blocks.0.attn.qkv.weight"))


def test_presets():
    with torch.device("meta"):
        model = regard.models.preset("deit_tiny", num_classes=10)
    assert model.config["embed_dim"] == 192 and model.get_parameter("head.weight").shape == (10, 192)
    with pytest.raises(ValueError, match="did you mean 'deit_tiny'?"):
        regard.models.preset("deit_tyny")


def test_names():
    assert regard.nn.SimPool is regard.nn.simpool is regard.nn.Simpool
    assert regard.nn.SimPool.__name__ == "SimPool" and regard.nn.PoolFormer.__name__ == "PoolFormer"
    assert regard.nn.SoftmaxAttention.__name__ == "SoftmaxAttention" and regard.nn.ClassToken.id == "class-token"
    assert {"SimPool", "SoftmaxAttention", "create", "Mechanism"} <= set(dir(regard.nn))
    assert regard.models.ViT is regard.nn.ViT and dir(regard.models) == ["ViT", "from_timm", "preset"]
    assert set(regard.list_mechanisms("pool")) < set(regard.list_mechanisms())
    assert regard.list_mechanisms(family="pooling", role="pool")


def test_repr():
    text = repr(regard.nn.SimPool(width=16))
    assert "width=16" in text and "(wq): Weights(weight (16, 16))" in text
    assert repr(regard.nn.Mean(width=4)) == "Mean(width=4)"


def test_a_pickle_opens_in_a_fresh_process(tmp_path):
    torch.save(regard.nn.SimPool(width=8), tmp_path / "pool.pt")
    code = ("import sys, torch, regard.nn; m = torch.load(sys.argv[1], weights_only=False); "
            "print(type(m).__name__, m(torch.rand(1, 4, 8)).shape[1])")
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "pool.pt")], capture_output=True, text=True)
    assert result.stdout.split() == ["SimPool", "8"], result.stderr


def test_weights_can_be_parametrized_and_replaced():
    module = regard.nn.SoftmaxAttention(width=8, heads=2, dtype=torch.float64)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    before = module(x)
    name = next(n for n, p in module.named_parameters() if n.endswith(".weight") and p.dim() == 2)
    owner = module.get_submodule(name.rpartition(".")[0])

    class Double(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(owner, "weight", Double())
    doubled = module(x)
    assert not torch.equal(doubled, before)
    torch.nn.utils.parametrize.remove_parametrizations(owner, "weight", leave_parametrized=True)
    assert torch.equal(module(x), doubled)


def test_outputs_beside_the_main_one():
    module = regard.nn.SoftmaxAttention(width=8, heads=2, dtype=torch.float64)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    name = ENTRIES["softmax-attention"]["outputs"][0]["name"]
    y, extra = module(x, outputs=[name])
    close(y, module(x))
    assert list(extra) == [name] and isinstance(extra[name], torch.Tensor)
    assert list(module(x, outputs=name)[1]) == [name]


def test_paths_are_passed_on():
    module = regard.nn.SoftmaxAttention(width=8, heads=2)
    x = torch.randn(2, 5, 8)
    for path in ("fused", "stripe", "composite"):
        regard.reset_path_counts()
        module(x, path=path)
        counts = regard.path_counts()["attention"]
        assert counts[path] == 1 and sum(counts.values()) == 1


@pytest.mark.parametrize("call, expected", [
    (lambda: regard.nn.SimPol, "[regard.nn] expected a mechanism among"),
    (lambda: regard.models.VitB, "[regard.models] expected a model among ViT; found 'VitB'"),
])
def test_unknown_classes(call, expected):
    with pytest.raises(AttributeError) as error:
        call()
    assert str(error.value).startswith(expected)
    assert "SimPol" not in str(error.value) or "did you mean 'SimPool'?" in str(error.value)


@pytest.mark.parametrize("call, expected", [
    (lambda: regard.create("simpol"), "found 'simpol'; did you mean 'simpool'?"),
    (lambda: regard.nn.SimPool(widht=8), "'widht'; did you mean 'width'?"),
    (lambda: regard.nn.SimPool(width=0), "width"),
    (lambda: regard.nn.SimPool(width=object()), "[simpool] expected a configuration of numbers, strings"),
    (lambda: regard.nn.SimPool(width=8)(torch.rand(2, 3, 9)), "[simpool]"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 3, 8), lenghts=torch.ones(2)), "did you mean 'lengths'?"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 3, 8), lenghts=3), "did you mean 'lengths'?"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 3, 8), lengths=3), "input lengths to be a tensor; found int"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 3, 8), path="fussed"), "did you mean 'fused'?"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 3, 8), outputs=["attn"]), "[mean]"),
    (lambda: regard.nn.SimPool(width=8)([1]), "[simpool] expected x to be a tensor; found list"),
    (lambda: regard.nn.PoolFormer(width=8)(torch.rand(2, 4, 8), grid=5),
     "[poolformer] expected grid to be a list of integers (rows, columns); found 5"),
    (lambda: regard.nn.PoolFormer(width=8)(torch.rand(2, 4, 8), grid=(2.0, 2)),
     "[poolformer] expected grid's entries to be an integer; found 2.0"),
    (lambda: regard.nn.SimPool(width=8)(torch.rand(2, 4, 8), prefix=None),
     "[simpool] expected prefix to be an integer; found None"),
    (lambda: regard.nn.SimPool(width=8)(torch.rand(2, 4, 8), seed=1.5),
     "[simpool] expected seed to be an int64 scalar tensor; found 1.5"),
    (lambda: regard.nn.SimPool(width=8)(torch.rand(2, 4, 8), seed=torch.tensor(1.5)),
     "[simpool] expected seed, an int64 scalar; found () float32"),
    (lambda: regard.nn.SimPool(width=8, dtype=torch.float32)(torch.rand(2, 4, 8).double()),
     "[simpool] expected x of the dtype of weight wq.weight, float32 (or autocast); found (2, 4, 8) float64"),
    (lambda: regard.nn.Mean(width=8)(torch.rand(2, 5, 8), lengths=torch.tensor([9, 1])),
     "[mean] expected lengths in [0, 5]; found 9 in row 0"),
    (lambda: regard.nn.Mechanism(), "[Mechanism] expected a mechanism"),
    (lambda: regard.list_mechanisms("mixr"), "found 'mixr'; did you mean 'mixer'?"),
    (lambda: regard.load_plugin("/nowhere/plugin.so"), "/nowhere/plugin.so"),
])
def test_bad_input(call, expected):
    with pytest.raises(ValueError) as error:
        call()
    assert expected in str(error.value), str(error.value)
    assert str(error.value).startswith("[") and "expected" in str(error.value)


def test_autocast_takes_any_floating_x():
    module, x = regard.nn.SimPool(width=8, dtype=torch.float32), torch.rand(2, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x.bfloat16()).isfinite().all()


def test_lengths_are_not_read_where_they_cannot_be():
    """Under vmap the entries are out of reach: what is beyond N counts as N."""
    module, x = regard.nn.Mean(width=8), torch.rand(3, 2, 5, 8)
    lengths = torch.tensor([[9, 1], [5, 2], [0, 5]])
    found = torch.vmap(lambda x, n: module(x, lengths=n))(x, lengths)
    close(found, torch.stack([module(a, lengths=n.clamp(max=5)) for a, n in zip(x, lengths)]), 1e-6)


def test_a_file_with_integers_for_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    path = tmp_path / "weights.safetensors"
    module = regard.nn.SimPool(width=8)
    module.save(path)
    metadata = {"mechanism": "simpool", "config": json.dumps(module.config)}
    tensors = load_file(path)
    tensors["wq.weight"] = tensors["wq.weight"].to(torch.int32)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError) as error:
        regard.load(path)
    assert str(error.value) == (f"[simpool] expected weight wq.weight of a floating dtype in '{path}'; "
                                "found (8, 8) int32")
