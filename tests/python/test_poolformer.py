"""poolformer: windows counted by hand, linearity, borders, the official backbone around it, refusals."""

import json
import os
import pathlib

import pytest
import torch
from mechanisms import gradcheck, main, refuses

ID = "poolformer"
GRIDS = [(1,), (7,), (1, 1), (1, 6), (2, 2), (4, 5), (2, 3, 4)]


def mix(x, grid, inputs=None, **config):
    return main(ID, {"width": x.shape[-1], **config}, [], x, inputs, grid=list(grid))


def neighbors(grid, size, causal=False):
    """A (N, N): row i averages the window around i, cut at the border."""
    places = torch.cartesian_prod(*[torch.arange(n) for n in grid]).reshape(-1, len(grid))
    offset = places[None] - places[:, None]
    near = (offset <= 0) & (offset > -size) if causal else offset.abs() <= size // 2
    near = near.all(-1).double()
    return near / near.sum(1, keepdim=True)


def tokens(grid, batch=2, width=3):
    return torch.randn(batch, torch.Size(grid).numel(), width, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_is_the_mean_of_the_window_minus_the_token(grid, size):
    x = tokens(grid)
    torch.testing.assert_close(mix(x, grid, pool_size=size), neighbors(grid, size) @ x - x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_causal_looks_to_the_left_only(size):
    x = tokens((7,))
    y = mix(x, (7,), pool_size=size, causal=True)
    torch.testing.assert_close(y, neighbors((7,), size, causal=True) @ x - x, rtol=1e-12, atol=1e-13)
    later = x.clone()
    later[:, 4:] = 1e3
    assert torch.equal(mix(later, (7,), pool_size=size, causal=True)[:, :4], y[:, :4])


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (2, 2), (5,)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(grid, causal):
    if causal and len(grid) > 1:
        pytest.skip("causal is for grids of one dimension")
    lengths = torch.tensor([torch.Size(grid).numel(), 1])
    for inputs in ({}, {"lengths": lengths}):
        gradcheck(lambda x: mix(x, grid, inputs, causal=causal), tokens(grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_constants_vanish_and_one_pixel_windows_give_zero(grid):
    flat = torch.full_like(tokens(grid), 2.5)
    assert mix(flat, grid).abs().max() < 1e-15
    assert (mix(tokens(grid), grid, pool_size=1) == 0).all()


def test_is_linear_and_commutes_with_shifts_inside():
    x, y = tokens((6, 7)), tokens((6, 7))
    torch.testing.assert_close(mix(2 * x - y, (6, 7)), 2 * mix(x, (6, 7)) - mix(y, (6, 7)))
    image = torch.zeros(1, 11, 11, 3, dtype=torch.float64)
    image[:, 3:6, 3:6] = torch.randn(3, 3, 3, dtype=torch.float64)
    shifted = image.roll((1, 2), (1, 2))
    got = mix(shifted.flatten(1, 2), (11, 11)).unflatten(1, (11, 11))
    torch.testing.assert_close(got, mix(image.flatten(1, 2), (11, 11)).unflatten(1, (11, 11)).roll((1, 2), (1, 2)))


@pytest.mark.parametrize("size, causal", [(3, False), (5, False), (4, True)])
def test_padded_tokens_are_not_there(size, causal):
    x, lengths = tokens((7,), 3), torch.tensor([7, 4, 0])
    poisoned = x.clone()
    poisoned[1, 4:] = poisoned[2] = torch.nan
    y = mix(poisoned, (7,), {"lengths": lengths}, pool_size=size, causal=causal)
    torch.testing.assert_close(y[:1], mix(x[:1], (7,), pool_size=size, causal=causal))
    torch.testing.assert_close(y[1:2, :4], mix(x[1:2, :4], (4,), pool_size=size, causal=causal))
    assert (y[1, 4:] == 0).all() and (y[2] == 0).all()


def test_channels_stay_apart_and_the_grid_matters():
    x = tokens((3, 4))
    other = x.clone()
    other[..., 0] += torch.randn(12, dtype=torch.float64)
    assert torch.equal(mix(x, (3, 4))[..., 1:], mix(other, (3, 4))[..., 1:])
    assert (mix(x, (3, 4)) - mix(x, (4, 3))).abs().max() > 0.01


# ---- the official backbone, with this mixer in it --------------------------------------------------------------------

GOLDEN = pathlib.Path(os.environ.get("REGARD_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden") / ID


def backbone(w, config, x):
    """PoolFormer in functions of its official weights: logits, the last stage's map and the first one's."""
    F = torch.nn.functional

    def norm(t, name):
        return F.group_norm(t, 1, w[name + ".weight"], w[name + ".bias"], 1e-5)

    def pooled(t):
        y = mix(t.flatten(2).transpose(1, 2), t.shape[2:], pool_size=config["pool_size"])
        return y.transpose(1, 2).unflatten(2, t.shape[2:])

    def mlp(t, name):
        t = F.gelu(F.conv2d(t, w[name + ".fc1.weight"], w[name + ".fc1.bias"]))
        return F.conv2d(t, w[name + ".fc2.weight"], w[name + ".fc2.bias"])

    def scaled(t, name):
        return t * w[name][:, None, None]

    t = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], config["in_stride"], config["in_pad"])
    stages = []
    for stage, layers in enumerate(config["layers"]):
        if stage:
            name = f"network.{2 * stage - 1}.proj"
            t = F.conv2d(t, w[name + ".weight"], w[name + ".bias"], config["down_stride"], config["down_pad"])
        for layer in range(layers):
            block = f"network.{2 * stage}.{layer}"
            t = t + scaled(pooled(norm(t, block + ".norm1")), block + ".layer_scale_1")
            t = t + scaled(mlp(norm(t, block + ".norm2"), block + ".mlp"), block + ".layer_scale_2")
        stages.append(t)
    return F.linear(norm(t, "norm").mean((2, 3)), w["head.weight"], w["head.bias"]), t, stages[0]


@pytest.mark.golden
def test_official_backbone_around_the_mixer():
    """Cases whose stages all pool run through the mixer; the host itself is not part of it."""
    from safetensors import safe_open
    run = 0
    for path in sorted(GOLDEN.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            case, config = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])
        if config.get("token_mixer") != "pool" or not all(config["downsamples"]):
            continue
        run += 1
        weights = {name[6:]: t.requires_grad_() for name, t in case.items() if name.startswith("param.")}
        x = case["in.x"].requires_grad_()
        out, last, first = backbone(weights, config, x)
        for got, name in ((out, "out.out"), (last, "out.tokens"), (first, "out.stage0")):
            assert (got - case[name]).abs().max() <= 1e-9 * case[name].abs().max()
        leaves = {"in.x": x, **{"param." + name: t for name, t in weights.items()}}
        largest = max(t.abs().max() for name, t in case.items() if name.startswith("grad."))
        for (name, _), got in zip(leaves.items(), torch.autograd.grad((out * case["w"]).sum(), list(leaves.values()))):
            want = case["grad." + name]
            assert (got - want).abs().max() <= max(1e-9 * want.abs().max(), 1e-12 * largest), name
    if not run:
        pytest.skip(f"no case of pooling stages in {GOLDEN}")


def test_bad_input():
    refuses("[poolformer] expected an odd pool_size; found 4", ID, {"width": 8, "pool_size": 4})
    refuses("[poolformer] expected pool_size > 0; found 0", ID, {"width": 8, "pool_size": 0})
    refuses("[poolformer] expected a grid of one dimension with causal; found 2", ID, {"width": 8, "causal": True}, grid=[2, 3])
    refuses("[poolformer] expected a grid of 1, 2 or 3 dimensions; found 4", ID, grid=[1, 1, 2, 3])
    refuses("[poolformer] expected a grid (rows, columns) of the tokens; found none", ID, grid=[])
    refuses("[poolformer] expected prefix + product(grid) = the 6 tokens of x; found prefix 0, grid (2, 2)", ID, grid=[2, 2])
    refuses("[poolformer] expected no prefix tokens (it has no place for tokens outside the grid); found prefix 1", ID,
            grid=[5], prefix=1)
