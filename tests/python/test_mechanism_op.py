"""torch.ops.regard.mechanism and its kin, over every registered mixer and pool."""

import json

import pytest
import torch
from mechanisms import CASES, REGISTRY, call, main, refuses, tokens, weights_of

OPS = torch.ops.regard


@pytest.mark.parametrize("id, config", CASES)
def test_compiles_whole_with_dynamic_shapes(id, config):
    weights = weights_of(id, config)
    compiled = torch.compile(lambda x: main(id, config, weights, x), backend="aot_eager", fullgraph=True, dynamic=True)
    frames = torch._dynamo.utils.counters["stats"]
    # Sizes that no weight has: the compiler takes equal sizes for the same one.
    for batch, length in ((17, 19), (21, 23), (25, 14)):
        x = tokens(config, batch, length)
        torch.testing.assert_close(compiled(x), main(id, config, weights, x), rtol=1e-12, atol=1e-12)
        if batch == 17:
            first = frames["unique_graphs"]
    assert frames["unique_graphs"] == first, "a new length or batch must not compile anew"
    torch._dynamo.reset()


@pytest.mark.parametrize("id, config", CASES)
def test_compiled_gradients(id, config):
    weights = [w.requires_grad_() for w in weights_of(id, config)]
    x = tokens(config, 2, 5).requires_grad_()

    def loss(x, weights):
        return main(id, config, weights, x).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    # Positions alone may decide: then x is not used.
    expected = torch.autograd.grad(loss(x, weights), [x, *weights], allow_unused=True)
    for got, want in zip(torch.autograd.grad(compiled(x, weights), [x, *weights], allow_unused=True), expected):
        assert want is not None or got is None or (got == 0).all()
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


class Owner(torch.nn.Module):
    def __init__(self, id, config):
        super().__init__()
        self.id, self.config = id, config
        self.tensors = torch.nn.ParameterList(weights_of(id, config))

    def forward(self, x):
        return main(self.id, self.config, list(self.tensors), x)


@pytest.mark.parametrize("id, config", CASES)
def test_exports_with_dynamic_shapes(id, config):
    owner, x = Owner(id, config), tokens(config, 3, 7)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}
    if REGISTRY[id]["role"] == "reducer":
        dims[1] = torch.export.Dim.AUTO  # a size of 1 is special to export, and few tokens become one
    program = torch.export.export(owner, (x,), dynamic_shapes=(dims,)).run_decompositions()
    for batch, length in ((3, 7), (2, 5)):
        x = tokens(config, batch, length)
        torch.testing.assert_close(program.module()(x), owner(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("id, config", CASES)
def test_functional_call(id, config):
    owner, x = Owner(id, config), tokens(config)
    other = {name: 2 * tensor.detach() for name, tensor in owner.named_parameters()}
    got = torch.func.functional_call(owner, other, (x,))
    torch.testing.assert_close(got, main(id, config, list(other.values()), x))


@pytest.mark.parametrize("id, config", CASES)
def test_transforms(id, config):
    weights, x = weights_of(id, config), tokens(config, 2, 4)
    tangent = torch.randn_like(x)

    def f(x):
        return main(id, config, weights, x)

    value, pushed = torch.func.jvp(f, (x,), (tangent,))
    jacobian = torch.func.jacrev(f)(x)
    torch.testing.assert_close(pushed, torch.tensordot(jacobian, tangent, dims=3))
    cotangent = torch.randn_like(value)
    (pulled,) = torch.func.vjp(f, x)[1](cotangent)
    torch.testing.assert_close(pulled, torch.tensordot(cotangent, jacobian, dims=value.dim()))
    torch.testing.assert_close(torch.func.grad(lambda x: (f(x) * cotangent).sum())(x), pulled)


@pytest.mark.parametrize("id, config", CASES)
def test_second_derivatives_by_transforms(id, config):
    weights, x = weights_of(id, config), tokens(config, 1, 3)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: main(id, config, weights, x).square().sum()))(x)
    assert hessian.isfinite().all()
    flat = hessian.reshape(x.numel(), x.numel())
    torch.testing.assert_close(flat, flat.T)


@pytest.mark.parametrize("id, config", CASES)
def test_vmap_over_inputs_and_over_weights(id, config):
    x = torch.stack([tokens(config), tokens(config)])
    models = [weights_of(id, config) for _ in range(2)]
    stacked = [torch.stack(tensors) for tensors in zip(*models)]
    got = torch.func.vmap(lambda x: main(id, config, models[0], x))(x)
    torch.testing.assert_close(got, torch.stack([main(id, config, models[0], one) for one in x]))
    if stacked:
        got = torch.func.vmap(lambda weights: main(id, config, weights, x[0]))(stacked)
        torch.testing.assert_close(got, torch.stack([main(id, config, weights, x[0]) for weights in models]))


def near(id, got, expected):
    far = (got - expected).abs() > 0.06 * (1 + expected.abs())
    # The weight of a score near 0 jumps from one sign to the other: rounding takes a few across.
    assert far.double().mean() <= (0.1 if id == "cog-attention" else 0), (got - expected).abs().max()


@pytest.mark.parametrize("id, config", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_near_float32(id, config, dtype):
    weights, x = weights_of(id, config, torch.float32), tokens(config, dtype=torch.float32)
    got = main(id, config, [w.to(dtype) for w in weights], x.to(dtype))
    assert got.dtype == dtype
    # What is chosen may hang on the rounding of x itself.
    near(id, got.float(), main(id, config, weights, x.to(dtype).float()))


@pytest.mark.parametrize("id, config", CASES)
def test_autocast(id, config):
    weights, x = weights_of(id, config, torch.float32), tokens(config, dtype=torch.float32)
    expected = main(id, config, weights, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = main(id, config, weights, x)
    near(id, got.float(), expected)


@pytest.mark.parametrize("id, config", CASES)
def test_empty_batch(id, config):
    weights, x = weights_of(id, config), tokens(config)
    assert main(id, config, weights, x[:0]).shape == (0, *main(id, config, weights, x).shape[1:])


@pytest.mark.parametrize("id, config", CASES)
def test_padding_is_as_if_it_were_not_there(id, config):
    """Lengths equal a call without the padded tokens; NaN in them reaches neither outputs nor gradients."""
    if not any(port["name"] == "lengths" for port in REGISTRY[id]["inputs"]):
        pytest.skip("takes no lengths")
    weights = [w.requires_grad_() for w in weights_of(id, config)]
    x, lengths = tokens(config, 4, 6), torch.tensor([6, 4, 1, 0])
    poisoned = x.clone()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = torch.nan
    poisoned.requires_grad_()
    y = main(id, config, weights, poisoned, {"lengths": lengths})
    for row, length in enumerate(lengths.tolist()):
        mixes = y.dim() == 3 and REGISTRY[id]["role"] != "reducer"
        got = y[row, :length] if mixes else y[row]
        if length == 0:
            assert (y[row] == 0).all()
            continue
        options = {"prefix": 1} if REGISTRY[id]["needs_prefix"] else {}
        expected = main(id, config, weights, x[row:row + 1, :length], **options)[0]
        got = got[:len(expected)] if REGISTRY[id]["role"] == "reducer" else got
        torch.testing.assert_close(got, expected)
        assert not mixes or (y[row, length:] == 0).all()
    if not y.requires_grad:
        return
    gradients = torch.autograd.grad(y.sum(), [poisoned, *weights], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert gradients[0] is None or all((gradients[0][row, length:] == 0).all() for row, length in enumerate(lengths))


@pytest.mark.parametrize("id, config", CASES)
def test_declared_weights_are_those_initialized(id, config):
    declared = json.loads(OPS.declare(id, config))
    tensors = OPS.initialize(id, config)
    assert [list(t.shape) for t in tensors] == [w["shape"] for w in declared["weights"]]
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors)
    assert json.loads(OPS.declare(id, json.dumps(declared["config"])))["config"] == declared["config"]
    known = {field["name"] for field in REGISTRY[id]["config"]}
    assert set(declared["config"]) == known and json.loads(config).items() <= declared["config"].items()


def test_initialization_follows_the_generator():
    draw = [OPS.initialize("simpool", '{"width": 8}', torch.float64, None, torch.Generator().manual_seed(s))
            for s in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(draw[0], draw[1]))
    assert not torch.equal(draw[0][2], draw[2][2])
    assert OPS.initialize("mean", '{"width": 8}') == []


def test_initialization_is_torchs():
    names = [w["name"] for w in json.loads(OPS.declare("softmax-attention", '{"width": 64}'))["weights"]]
    drawn = dict(zip(names, OPS.initialize("softmax-attention", '{"width": 64}')))
    bound = (6 / (64 + 192)) ** 0.5
    assert 0.95 * bound < drawn["in_proj_weight"].abs().max() <= bound
    assert 0.9 / 8 < drawn["out_proj.weight"].abs().max() <= 1 / 8
    assert (drawn["in_proj_bias"] == 0).all() and (drawn["out_proj.bias"] == 0).all()


def test_registry_says_what_each_mechanism_is():
    for id, info in REGISTRY.items():
        assert info["id"] == id and info["role"] in ("mixer", "pool", "reducer", "host")
        assert info["title"] and info["equation"] and info["paper"] and info["family"]
        assert all(field["name"] and field["doc"] and field["type"] for field in info["config"])
        assert all(port["name"] and port["doc"] for port in info["inputs"] + info["outputs"])
        for example in info["examples"]:
            OPS.declare(id, json.dumps(example))
    order = [(info["family"], id) for id, info in REGISTRY.items()]
    assert order == sorted(order)
    assert {"class-token", "mean", "max", "generalized-mean", "log-sum-exp", "simpool", "softmax-attention",
            "poolformer"} <= set(REGISTRY)


def test_dropout_is_replayed_by_its_seed_and_off_outside_of_training():
    config = {"width": 8, "heads": 2, "attn_drop": 0.4, "proj_drop": 0.3}
    weights, x = weights_of("softmax-attention", config), tokens(config, 4, 16)

    def f(seed, training=True):
        return main("softmax-attention", config, weights, x, training=training, seed=torch.tensor(seed))

    assert torch.equal(f(1), f(1)) and not torch.equal(f(1), f(2))
    assert torch.equal(f(1, training=False), f(2, training=False))
    dropped = (f(1) == 0).double().mean()
    assert 0.2 < dropped < 0.4
    torch.manual_seed(3)
    first = main("softmax-attention", config, weights, x, training=True)
    second = main("softmax-attention", config, weights, x, training=True)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, main("softmax-attention", config, weights, x, training=True))


def test_dropout_keeps_the_mean():
    config = {"width": 8, "heads": 2, "proj_drop": 0.25}
    weights, x = weights_of("softmax-attention", config), tokens(config, 2, 4)
    total = sum(main("softmax-attention", config, weights, x, training=True, seed=torch.tensor(s)) for s in range(3000))
    expected = main("softmax-attention", config, weights, x)
    torch.testing.assert_close(total / 3000, expected, rtol=0, atol=float(expected.abs().max()) * 0.06)


def test_a_wanted_output_stands_behind_the_main_one():
    config = {"width": 8, "heads": 2}
    weights, x = weights_of("softmax-attention", config), tokens(config)
    y, lse, attn = call("softmax-attention", config, weights, x, outputs=["lse", "attn"])
    assert y.shape == (2, 6, 8) and lse.shape == (2, 2, 6) and attn.shape == (2, 2, 6, 6)


IDS = ", ".join(f"'{id}'" for id in sorted(REGISTRY))


def test_bad_calls_say_what_was_expected():
    x, L = torch.randn(2, 6, 8), torch.tensor([6, 2])
    refuses("[mean] expected configuration keys among 'width', 'include_prefix'; found 'include_prefx'; did you mean "
            "'include_prefix'?", "mean", {"width": 8, "include_prefx": True})
    refuses("[mean] expected width > 0; found 0", "mean", {})
    refuses("[mean] expected width to be an integer; found 8.0", "mean", {"width": 8.0})
    refuses("[mean] expected include_prefix to be true or false; found 1", "mean", {"width": 8, "include_prefix": 1})
    refuses('[simpool] expected gamma to be a number or null; found "2"', "simpool", {"width": 8, "gamma": "2"})
    refuses("[mean] expected the configuration to be a JSON object; found [8]", "mean", "[8]", weights=[])
    refuses("[mean] expected x (B, N, 7) or (B, 7, H, W) of a floating type; found (2, 6, 8) float32", "mean",
            {"width": 7})
    refuses("[mean] expected x (B, N, 8) or (B, 8, H, W) of a floating type; found (2, 6, 8) int64", "mean", x=x.long())
    refuses("[poolformer] expected x (B, N, 8) of a floating type; found (6, 8) float32", "poolformer", x=x[0], grid=[6])
    refuses("[mean] expected inputs among 'lengths'; found 'length'; did you mean 'lengths'?", "mean", inputs={"length": L})
    refuses("[mean] expected lengths (B), integer; found (2,) float32", "mean", inputs={"lengths": L.float()})
    refuses("[mean] expected lengths of the 2 rows of x; found (3,) int64", "mean", inputs={"lengths": torch.ones(3).long()})
    refuses("[mean] expected no outputs beside the main one; found 'attn'", "mean", outputs=["attn"])
    refuses("[mean] expected 0 weights; found 1", "mean", weights=[x])
    refuses("[simpool] expected weight wq.weight (8, 8); found (2, 6, 8) float32", "simpool", weights=[x[0, 0], x[0, 0], x, x])
    refuses("[mean] expected prefix >= 0; found -1", "mean", prefix=-1)
    refuses("[mean] expected prefix + product(grid) = the 6 tokens of x; found prefix 1, grid (2, 3)", "mean",
            grid=[2, 3], prefix=1)
    with pytest.raises(ValueError, match=r"^\[mean\] expected one name for each of the 1 inputs; found 0$"):
        OPS.mechanism("mean", '{"width": 8}', [], x, [L], [])
    with pytest.raises(ValueError, match=r"^\[mean\] expected each input once; found 'lengths' twice$"):
        OPS.mechanism("mean", '{"width": 8}', [], x, [L, L], ["lengths", "lengths"])
    with pytest.raises(ValueError) as error:
        OPS.declare("simpol", "{}")
    assert str(error.value) == f"[mechanism] expected an id among {IDS}; found 'simpol'; did you mean 'simpool'?"
    with pytest.raises(ValueError, match=r"^\[load_plugin\] expected a shared library; found '/no/such.so' \("):
        OPS.load_plugin("/no/such.so")
    with pytest.raises(ValueError, match=r"^\[initialize\] expected a floating dtype; found Int$"):
        OPS.initialize("simpool", '{"width": 8}', torch.int32)
