"""torch.compile, torch.export, autocast and opcheck, on the op, on traced functions and on every mechanism."""

import json
import subprocess
import sys

import pytest
import regard
import torch
import torch._dynamo.testing
from test_attention import close

ENTRIES = {entry["id"]: entry for entry in json.loads(torch.ops.regard.registry())}
EXAMPLES = [(id, json.dumps(example)) for id, entry in ENTRIES.items() for example in entry["examples"]]
# The one with the most options; the theorems compile and export trace others.
LAST = [(id, json.dumps(entry["examples"][-1])) for id, entry in ENTRIES.items() if entry["examples"]]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def compiled(f, **options):
    return torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager", **options)


def case(B=2, M=6, N=10, dtype=torch.float64):
    return tuple(torch.randn(*shape, dtype=dtype, requires_grad=True)
                 for shape in ((B, 4, M, 8), (B, 2, N, 8), (B, 2, N, 6), (4,), (B, N)))


def attend(q, k, v, slopes, marks):
    """All that Python's tracing does inside of a compiled function: closures, masks, statistics of the map."""
    cap = slopes.sum()
    score = lambda s, b, h, i, j: cap * torch.tanh(s) - slopes[h] * (i - j).abs() + marks[b, j]  # noqa: E731
    o, lse = regard.attention(q, k, v, score=score, mask=lambda b, h, i, j: i + 3 >= j, return_lse=True)
    entropy = regard.AttentionMap(q, k, is_causal=True).entropy()
    return o, lse, entropy


def gradients(f, arguments):
    outputs = f(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs)
    wanted = [x for x in arguments if x.requires_grad]
    return outputs, torch.autograd.grad(loss, wanted, allow_unused=True)


def same(actual, expected, tolerance=1e-11):
    for a, e in zip(actual, expected):
        assert (a is None) == (e is None)
        if e is not None:
            close(a, e, tolerance)


def test_traced_functions_compile_whole_with_dynamic_shapes():
    f = compiled(attend)
    for sizes in ({}, {"M": 7, "N": 11}, {"B": 3, "M": 12, "N": 5}):
        arguments = case(**sizes)
        expected = gradients(attend, arguments)
        actual = gradients(f, arguments)
        same(actual[0], expected[0])
        same(actual[1], expected[1])


def test_another_length_needs_no_other_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for n in (11, 14, 17, 29):
        arguments = case(M=n, N=n + 1)
        for actual, expected in zip(f(*arguments), attend(*arguments)):
            close(actual, expected)
        counts.append(counter.frame_count)
    assert counts[0] > 0 and len(set(counts)) == 1, counts


def test_spec_made_outside():
    spec = regard.Spec(score=lambda s, b, h, i, j: torch.tanh(s), is_causal=True)
    f = lambda q, k, v: regard.attention(q, k, v, spec=spec)  # noqa: E731
    arguments = case()[:3]
    expected, actual = gradients(f, arguments), gradients(compiled(f), arguments)
    same(actual[0], expected[0])
    same(actual[1], expected[1])


def test_query_offset_of_a_dynamic_length():
    """Bottom-right alignment N - M inside of a compiled function."""
    f = lambda q, k, v: regard.attention(q, k, v, is_causal=True, query_offset=k.shape[2] - q.shape[2])  # noqa: E731
    g = compiled(f)
    for m, n in ((3, 7), (4, 9)):
        arguments = case(M=m, N=n)[:3]
        close(g(*arguments), f(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compile_it", [False, True])
def test_autocast(dtype, compile_it):
    arguments = case(dtype=torch.float32)[:3]
    f = lambda q, k, v: regard.attention(q, k, v, is_causal=True)  # noqa: E731
    with torch.autocast("cpu", dtype=dtype):
        o, g = gradients(compiled(f) if compile_it else f, arguments)
    assert o[0].dtype == dtype and all(x.dtype == torch.float32 for x in g)
    expected, expected_g = gradients(f, arguments)
    close(o[0].float(), expected[0], 4e-2)
    same(g, expected_g, 6e-2)


def test_export():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slopes = torch.nn.Parameter(torch.rand(4, dtype=torch.float64))

        def forward(self, q, k, v):
            return regard.attention(q, k, v, score=lambda s, b, h, i, j: s - self.slopes[h] * (i - j), is_causal=True)

    model = Model()
    length, batch = torch.export.Dim("length", min=2, max=512), torch.export.Dim("batch", min=2, max=64)
    axes = {0: batch, 2: length}
    q, k, v = (x.detach() for x in case(M=6, N=6)[:3])
    program = torch.export.export(model, (q, k, v), dynamic_shapes=(axes, axes, axes))
    assert any("regard.att" in str(node.target) for node in program.graph.nodes)
    q, k, v = (x.detach() for x in case(B=3, M=9, N=9)[:3])
    close(program.module()(q, k, v), model(q, k, v))


SPECS = {
    "plain": lambda q, k: {},
    "causal": lambda q, k: {"is_causal": True},
    "bias": lambda q, k: {"score": (lambda bias: lambda s, b, h, i, j: s + bias[h, i, j])(
        torch.randn(q.shape[1], q.shape[2], k.shape[2], dtype=q.dtype, requires_grad=True))},
    "relu": lambda q, k: {"normalizer": "relu"},
    "pairs": lambda q, k: {"pair_outputs": [lambda b, h, i, j: (i - j).abs()]},
}


@pytest.mark.parametrize("path", ["fused", "stripe", "composite"])
@pytest.mark.parametrize("name", SPECS)
def test_opcheck(name, path):
    if path == "fused" and name in ("relu", "pairs"):
        pytest.skip("the fused path refuses this spec")
    q, k, v = case(M=5, N=6)[:3]
    spec = regard.Spec(**SPECS[name](q, k))
    torch.library.opcheck(torch.ops.regard.attend.default,
                          ([q, k, v, *spec.captures.values()], spec.json, None, None, 0, path))


def test_opcheck_of_the_backward():
    q, k, v = (x.detach() for x in case(M=5, N=6)[:3])
    o, lse, _ = torch.ops.regard.attention(q, k, v, "{}", [], [])
    arguments = (torch.randn_like(o), None, None, o, lse, q, k, v, "{}", [], [], None, None, 0, "auto", [True] * 6)
    torch.library.opcheck(torch.ops.regard.attention_backward.default, arguments,
                          test_utils=("test_schema", "test_faketensor"))


def inputs_of(entry, config, module):
    """x and the call's arguments for an example configuration."""
    width = config.get("width", 8)
    if entry["role"] == "host":
        size = config.get("img_size", 8)
        size = size if isinstance(size, list) else [size]
        return torch.randn(2, config.get("in_chans", 3), size[0], size[-1], dtype=torch.float64), {}
    prefix = 1 if entry["takes_prefix"] or entry["needs_prefix"] else 0
    call = {"prefix": prefix}
    if entry["needs_grid"]:
        call["grid"] = (3, 4)
    x = torch.rand(2, prefix + 12, width, dtype=torch.float64)
    if any(port["name"] == "memory" for port in entry["inputs"]) and config.get("cross"):
        call["memory"] = torch.rand(2, 7, config.get("memory_width") or width, dtype=torch.float64)
    return x, call


@pytest.mark.parametrize("id, example", LAST)
def test_every_mechanism_compiles_and_exports(id, example):
    config = json.loads(example)
    module = regard.nn.create(id, **config, dtype=torch.float64).eval()
    x, call = inputs_of(ENTRIES[id], config, module)
    weights = [p for p in module.parameters() if p.requires_grad]

    def run(f):
        o = f(x, **call)
        return o.detach(), torch.autograd.grad(o.square().sum(), weights, allow_unused=True) if weights else ()

    expected, actual = run(module), run(compiled(module))
    close(actual[0], expected[0])
    same(actual[1], expected[1], 1e-10)

    tensors = {name: value for name, value in call.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in call.items() if name not in tensors}

    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x, tensors):
            return self.inner(x, **tensors, **others)

    axes = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(Bound(), (x, tensors), dynamic_shapes=(axes, {name: axes for name in tensors}))
    more, more_tensors = torch.cat([x, x.flip(0), x]), {name: torch.cat([t] * 3) for name, t in tensors.items()}
    close(program.module()(more, more_tensors), module(more, **more_tensors, **others))


def test_every_mechanism_under_autocast():
    for id, example in EXAMPLES:
        config = json.loads(example)
        module = regard.nn.create(id, **config).eval()
        x, call = inputs_of(ENTRIES[id], config, module)
        call = {n: c.float() if isinstance(c, torch.Tensor) else c for n, c in call.items()}
        expected = module(x.float(), **call)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            o = module(x.float(), **call)
        if ENTRIES[id]["role"] == "reducer":  # its choice of tokens may flip
            assert o.shape == expected.shape and o.isfinite().all()
            continue
        # A sign, a choice of blocks or of heads may flip under rounding, in few entries.
        far = (o.float() - expected).abs() > 6e-2 * expected.abs().max().clamp_min(1)
        assert far.float().mean() < 0.1, (id, example)


@pytest.mark.slow
def test_inductor():
    model = regard.models.ViT(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2).eval()
    f = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(f(x), model(x), rtol=1e-4, atol=1e-5)
        loss = f(x).square().sum()
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        for a, e in zip(torch.autograd.grad(loss, list(model.parameters())), expected):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


AOT = """
import sys, torch, regard
model = regard.models.ViT(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2).eval()
x = torch.randn(2, 1, 8, 8)
program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
path = torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1])
compiled = torch._inductor.aoti_load_package(path)
for batch in (2, 7):
    x = torch.randn(batch, 1, 8, 8)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_ahead_of_time_inductor(tmp_path):
    result = subprocess.run([sys.executable, "-c", AOT, str(tmp_path / "model.pt2")], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip().endswith("equal"), result.stdout + result.stderr
