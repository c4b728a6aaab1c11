"""What layers publish for later ones, and their losses: in a Stack, under checkpointing, and in a host."""

import os
import pathlib
import subprocess
import sys

import pytest
import regard
import torch
from regard.nn import Residual, SoftmaxAttention, Stack

ROOT = pathlib.Path(__file__).parents[2]
PLUGIN = pathlib.Path(os.environ.get("REGARD_BUILD_DIR", ROOT / "build/release")) / "tests/relay_mechanism.so"


class Weighing(torch.nn.Module):
    """y = x * (1 + significance): a layer of one's own that consumes, publishes and has a loss."""

    consumes, publishes, losses = ["significance"], ["weighed"], ["size"]

    def __init__(self, width):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((width,), 0.7, dtype=torch.float64))
        self.calls = 0

    def forward(self, x, *, outputs=(), significance=None, **_):
        self.calls += 1
        y = x * self.scale
        if significance is not None:
            y = y * (1 + significance.unsqueeze(-1))
        found = {"weighed": y.sum(-1), "loss.size": y.square().mean()}
        return (y, {name: found[name] for name in outputs}) if outputs else y


def attention(**config):
    return SoftmaxAttention(width=8, heads=2, causal=True, dtype=torch.float64, **config)


@pytest.fixture
def stack():
    return Stack([Residual(attention(), torch.nn.LayerNorm(8, dtype=torch.float64)), Weighing(8),
                  torch.nn.Linear(8, 8, dtype=torch.float64), attention(), Weighing(8)])


@pytest.fixture
def x():
    return torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)


def by_hand(stack, x):
    """The stack's layers called one by one."""
    first, weigh, linear, second, last = stack.layers
    mixed, found = first.mixer(first.norm(x), outputs="significance")
    y = x + mixed
    y, a = weigh(y, outputs=["loss.size"], significance=found["significance"])
    y, found = second(linear(y), outputs="significance")
    y, b = last(y, outputs=["loss.size"], significance=found["significance"])
    return y, a["loss.size"] + b["loss.size"]


def gradients(stack, x, y, loss):
    return torch.autograd.grad((y * torch.arange(1., 9)).sum() + 3 * loss, [x, *stack.parameters()])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_stack_is_its_layers_connected(stack, x, checkpoint):
    y, loss = by_hand(stack, x)
    expected = gradients(stack, x, y, loss)
    stack.checkpoint = checkpoint
    calls = stack.layers[1].calls
    z, found = stack(x, outputs=["loss", "loss.size"])
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(found["loss"], loss)
    assert torch.equal(found["loss"], found["loss.size"])
    for a, b in zip(gradients(stack, x, z, found["loss"]), expected):
        torch.testing.assert_close(a, b)
    assert stack.layers[1].calls == calls + (2 if checkpoint else 1)  # it was recomputed


def test_checkpointing_the_whole_stack_is_right_too(stack, x):
    from torch.utils.checkpoint import checkpoint

    y, loss = by_hand(stack, x)
    expected = gradients(stack, x, y, loss)
    def run(x):
        z, found = stack(x, outputs="loss")
        return z, found["loss"]

    for a, b in zip(gradients(stack, x, *checkpoint(run, x, use_reentrant=False)), expected):
        torch.testing.assert_close(a, b)


def test_dropout_is_replayed(x):
    torch.manual_seed(3)
    stack = Stack([attention(attn_drop=0.3, proj_drop=0.2), Weighing(8)])
    results = []
    for checkpoint in (False, True):
        stack.checkpoint = checkpoint
        torch.manual_seed(5)
        y = stack(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *stack.parameters()])))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_outputs_and_edits_by_place(stack, x):
    _, found = stack(x, outputs=["0.tap.entropy", "3.attn", "weighed", "1.weighed"])
    assert found["0.tap.entropy"].shape == (2, 2, 5) and found["3.attn"].shape == (2, 2, 5, 5)
    assert not torch.equal(found["weighed"], found["1.weighed"])
    _, edited = stack(x, outputs=["0.tap.entropy", "3.tap.entropy"],
                      edits=[regard.Edit(score=lambda s, b, h, i, j: 0 * s, layer="3")])
    torch.testing.assert_close(edited["3.tap.entropy"][0, 0], torch.arange(1., 6, dtype=torch.float64).log())
    assert torch.equal(edited["0.tap.entropy"], found["0.tap.entropy"])


def test_nobody_reads_nobody_computes(x):
    first, last = Weighing(8), attention()
    asked = []
    forward = first.forward
    first.forward = lambda x, *, outputs=(), **call: asked.append(list(outputs)) or forward(x, outputs=outputs, **call)
    Stack([first, last])(x)
    assert asked == [[]]


def test_a_stack_in_a_stack_publishes_and_consumes(x):
    inner = Stack([attention()])
    assert inner.publishes == ["significance"]
    outer = Stack([inner, Weighing(8)])
    y, found = inner.layers[0](x, outputs="significance")
    torch.testing.assert_close(outer(x), outer.layers[1](y, significance=found["significance"]))
    _, found = outer(x, outputs="0.0.tap.max")
    assert found["0.0.tap.max"].shape == (2, 2, 5)


def test_packed_lengths_and_decode(x):
    stack = Stack([Residual(attention()), torch.nn.Linear(8, 8, dtype=torch.float64), attention()])
    whole = stack(x)
    y, cache = stack.decode(x[:, :2])
    z, cache = stack.decode(x[:, 2:], cache)
    torch.testing.assert_close(torch.cat([y, z], 1), whole)
    assert sorted(cache) == ["0.k", "0.v", "2.k", "2.v"] == sorted(stream["name"] for stream in stack.caches)
    packed = stack(x[:1], cu_seqlens=torch.tensor([0, 2, 5]))
    torch.testing.assert_close(packed, torch.cat([stack(x[:1, :2]), stack(x[:1, 2:])], 1))
    short = stack(x, lengths=torch.tensor([5, 3]))
    torch.testing.assert_close(short[1, :3], stack(x[1:, :3])[0])


def test_a_cache_of_some_layers_is_refused(x):
    """A layer without its streams would begin anew beside layers that go on."""
    stack = Stack([attention(), attention()])
    _, cache = stack.decode(x[:, :2])
    some = {name: tensor for name, tensor in cache.items() if name.startswith("0.")}
    for given in (some, {**some, "2.k": cache["1.k"]}):
        with pytest.raises(ValueError,
                           match=r"\[Stack\] expected all streams of the cache, 0.k, 0.v, 1.k, 1.v; found 0.k"):
            stack.decode(x[:, 2:], given)


@pytest.mark.parametrize("outputs, message", [
    ("weighd", r"\[Stack\] expected outputs among significance, weighed, loss, loss.size, PLACE.NAME .*; "
               r"found 'weighd'; did you mean 'weighed'\?"),
    ("2.tap.max", r"\[Stack\] expected outputs among .*\(0, 1, 3, 4\); found '2.tap.max'"),
    ("loss.balance", r"\[Stack\] expected a layer with the auxiliary loss that is asked for; found 'loss.balance'"),
    ("3.tap.maxx", r"\[tap\] expected one of"),
])
def test_outputs_that_nothing_gives(stack, x, outputs, message):
    with pytest.raises(ValueError, match=message):
        stack(x, outputs=outputs)


def test_other_errors(stack, x):
    without = r"\[Stack\] expected layers that decode step by step; found layer 1, Weighing, without"
    with pytest.raises(ValueError, match=without):
        stack.decode(x)
    nowhere = r"\[Stack\] expected edits of layers that it has, by their places; found layer '9'"
    with pytest.raises(ValueError, match=nowhere):
        stack(x, edits=[regard.Edit(head_scale=[1, 1], layer="9")])
    with pytest.raises(ValueError, match=r"\[Stack\] expected layers to be modules; found int at 0"):
        Stack([3])
    with pytest.raises(ValueError, match=r"\[Residual\] expected a mechanism, .*; found Linear"):
        Residual(torch.nn.Linear(2, 2))


# ---- a host, whose mixer consumes what the block before published ------------------------------------------------

HOST = """
import json, sys, torch
import regard
regard.load_plugin(sys.argv[1])
torch.manual_seed(0)
config = dict(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=3, num_heads=2, mlp_ratio=1,
              mixer="relay", mixer_config={})
model = regard.models.ViT(dtype=torch.float64, **config)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter)  # LayerNorm's own would leave means of 0
image = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)

def by_hand(image):
    w = dict(model.named_parameters())
    t = image.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    t = t @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    t = torch.cat([w["cls_token"].expand(2, -1, -1), t], 1) + w["pos_embed"]
    norm = lambda t, name: torch.nn.functional.layer_norm(t, (8,), w[name + ".weight"], w[name + ".bias"], 1e-6)
    means, sizes, shifts = None, [], []
    for i in range(3):
        at = f"blocks.{i}."
        y = norm(t, at + "norm1") * w[at + "attn.w"]
        y = y if means is None else y + means.unsqueeze(-1)
        means = y.mean(-1)
        sizes.append(y.square().mean())
        shifts.append(y.mean().square())
        t = t + y
        f = torch.nn.functional.linear(norm(t, at + "norm2"), w[at + "mlp.fc1.weight"], w[at + "mlp.fc1.bias"])
        t = t + torch.nn.functional.linear(torch.nn.functional.gelu(f), w[at + "mlp.fc2.weight"], w[at + "mlp.fc2.bias"])
    logits = torch.nn.functional.linear(norm(t, "norm")[:, 0], w["head.weight"], w["head.bias"])
    return logits, sum(sizes), sum(shifts), means

logits, size, shift, means = by_hand(image)
y, found = model(image, outputs=["loss", "loss.size", "loss.shift", "blocks.2.attn.means", "blocks.0.attn.loss.size"])
close = torch.testing.assert_close
close(y, logits); close(found["loss.size"], size); close(found["loss"], size + shift)
close(found["loss.shift"], shift); close(found["blocks.2.attn.means"], means)
parameters = [image, *model.parameters()]
want = torch.autograd.grad(logits.sum() + size + 2 * shift, parameters, retain_graph=True)
from torch.utils.checkpoint import checkpoint
def run(image):
    y, found = model(image, outputs=["loss.size", "loss.shift"])
    return y, found["loss.size"], found["loss.shift"]
for result in (run(image), checkpoint(run, image, use_reentrant=False)):
    got = torch.autograd.grad(result[0].sum() + result[1] + 2 * result[2], parameters)
    for a, b in zip(got, want): close(a, b)
quiet = regard.models.ViT(dtype=torch.float64, **{**config, "mixer_config": {"quiet": True}})
quiet.load_state_dict(model.state_dict())
# A layer that leaves nothing is no error, and no value. (A shift of all channels does not pass the next LayerNorm.)
assert not torch.allclose(quiet(image, outputs="loss.size")[1]["loss.size"], found["loss.size"])
layers = [regard.create("relay", width=8, quiet=quiet) for quiet in (True, False, False)]
z = torch.randn(1, 3, 8)
for checkpoint in (False, True):
    first = layers[0](z)
    second, found = layers[1](first, outputs="means")
    close(regard.nn.Stack(layers, checkpoint=checkpoint)(z), layers[2](second, means=found["means"]))
try:
    layers[1](z, means=torch.zeros(1, 3, 8))
except ValueError as error:
    assert "[relay] expected means, float (B, N); found (1, 3, 8) float32" in str(error), str(error)
else:
    raise AssertionError("a form")
stack = regard.nn.Stack([regard.create("relay", width=8)
                         for _ in range(2)])
z, found = stack(torch.randn(1, 3, 8), outputs="loss")
found["loss"].backward()
for outputs, words in (("loss.none", "[vit] expected a layer with the auxiliary loss that is asked for; found 'loss.none'"),
                       ("blocks.7.attn.means", "[vit] expected outputs among 'features'"),
                       ("blocks.1.attn.meens", "did you mean 'means'?"),
                       ("blocks.1.attn.tap.max", "expected outputs that this call computes")):
    try:
        model(image, outputs=outputs)
    except ValueError as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(outputs)
print("right")
"""


def test_a_host_connects_its_layers_and_sums_their_losses():
    if not PLUGIN.exists():
        pytest.fail(f"no plug-in at {PLUGIN}")
    done = subprocess.run([sys.executable, "-c", HOST, str(PLUGIN)], capture_output=True, text=True)
    assert done.returncode == 0 and "right" in done.stdout, done.stderr


def test_a_host_without_losses_says_so():
    model = regard.models.ViT(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    with pytest.raises(ValueError,
                       match=r"\[vit\] expected a layer with the auxiliary loss that is asked for; found 'loss'"):
        model(torch.randn(1, 1, 4, 4), outputs="loss")
