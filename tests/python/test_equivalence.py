"""Blocked = stripe = composite over random specs and shapes, forward and gradients, with the path that ran asserted.

float64: to 1e-11 of the largest magnitude. float32: at most 4 times the composite's own error against float64, which
counts as no less than 4 units in the last place: of the tensor's largest magnitude for o and lse, of the case's largest
gradient for gradients (they are differences of numbers of that size: a row with one key has dp - delta = 0).
"""

import math
import random

import pytest
import regard
import torch

CASES = 330
PATHS = ("fused", "stripe")
LENGTHS = (0, 1, 2, 3, 5, 7, 13, 31, 63, 64, 65, 127, 128, 129)
WIDTHS = (1, 2, 3, 7, 8, 16, 31, 32, 33)
ULP = torch.finfo(torch.float32).eps


def lengths(rng, most):
    return rng.choice([n for n in LENGTHS if n <= most])


class Case:
    """A random call: shapes, memory layouts, score, mask, weight, scale, offset, sinks, normalizer."""

    def __init__(self, seed):
        rng = self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        most = 129 if seed % 5 == 0 else 65 if seed % 2 else 31
        self.B, self.Hk, self.M, self.N = rng.choice((1, 2, 3)), rng.choice((1, 2)), lengths(rng, most), lengths(rng, most)
        if rng.random() < 0.02:
            self.B = 0
        self.H = self.Hk * rng.choice((1, 1, 2, 3))
        self.D, self.Dv = rng.choice(WIDTHS), rng.choice(WIDTHS)
        self.tensors = {
            "q": self.tensor(self.B, self.H, self.M, self.D),
            "k": self.tensor(self.B, self.Hk, self.N, self.D),
            "v": self.tensor(self.B, self.Hk, self.N, self.Dv),
        }
        self.integers = {}
        self.arguments = {}
        if rng.random() < 0.4:
            self.arguments["scale"] = rng.choice((1.0, 0.25, -0.5))
        if rng.random() < 0.3:
            self.arguments["query_offset"] = rng.choice((1, self.N - self.M, -2, 40))
        self.score = rng.choice(SCORES)(self)
        self.mask = rng.choice(MASKS)(self)
        self.weight = rng.choice(WEIGHTS)(self) if rng.random() < 0.25 else None
        if rng.random() < 0.2:
            self.tensors["sinks"] = self.tensor(*rng.choice(((self.H,), (self.H, 2))))
        elif rng.random() < 0.4:
            normalizer = rng.choice(NORMALIZERS)
            self.arguments["normalizer"] = normalizer
            # Hidden by a score of -inf: exponentials and rectifiers alone give that a meaning.
            if self.score is MINUS_INFINITY and normalizer["kind"] in ("signed_softmax", "identity", "z_score"):
                self.score = None

    def random(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def tensor(self, *shape):
        """Random numbers (rounded to float32, so that both precisions see the same) in a random memory layout."""
        layout = self.rng.choice(("plain", "plain", "strided", "transposed", "broadcast"))
        shape = list(shape)
        if layout == "strided" and shape:
            base = self.random(*shape[:-1], 2 * shape[-1]).float().double()
            return base[..., ::2]
        if layout == "transposed" and len(shape) > 1:
            base = self.random(*shape[:-2], shape[-1], shape[-2]).float().double()
            return base.transpose(-1, -2)
        if layout == "broadcast" and len(shape) > 1:
            axis = self.rng.randrange(len(shape) - 1)
            base = self.random(*shape[:axis], 1, *shape[axis + 1:]).float().double()
            return base.expand(*shape)
        return self.random(*shape).float().double()

    def captured(self, name, *shape):
        self.tensors[name] = self.tensor(*shape)
        return lambda: self.live[name]

    def integer(self, name, high, *shape):
        self.integers[name] = torch.randint(0, high, shape, generator=self.generator, dtype=torch.int32)
        return self.integers[name]

    def run(self, path, dtype):
        """o, lse and the gradients of a fixed random functional of them, and the paths that ran."""
        self.live = {name: t.to(dtype) if t.dtype == dtype else _same_layout(t, dtype) for name, t in self.tensors.items()}
        self.live = {name: t.detach().requires_grad_() for name, t in self.live.items()}
        live = self.live
        regard.reset_path_counts()
        o, lse = regard.attention(live["q"], live["k"], live["v"], score=self.score, mask=self.mask, weight=self.weight,
                                  sinks=live.get("sinks"), path=path, return_lse=True, **self.arguments)
        generator = torch.Generator().manual_seed(1)
        go = torch.randn(o.shape, generator=generator, dtype=torch.float64).to(dtype)
        gl = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(dtype)
        gl = torch.where(torch.isneginf(lse), torch.zeros_like(gl), gl)
        loss = (o * go).sum() + (torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse) * gl).sum()
        gradients = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
        counts = {op: {p: n for p, n in c.items() if n} for op, c in regard.path_counts().items()}
        results = {"o": o.detach(), "lse": lse.detach()}
        for (name, t), g in zip(live.items(), gradients):
            results[f"d {name}"] = torch.zeros_like(t) if g is None else g
        return results, {op: c for op, c in counts.items() if c}


def _same_layout(t, dtype):
    """t in another dtype with its strides (0 where it broadcasts)."""
    axes = [slice(0, 1) if stride == 0 and size > 1 else slice(None) for stride, size in zip(t.stride(), t.shape)]
    base = t[tuple(axes)]
    if base.dim() > 1 and base.stride(-1) != 1 and base.stride(-2) == 1:
        base = base.transpose(-1, -2).to(dtype).transpose(-1, -2)
    elif base.dim() and base.stride(-1) == 2:
        base = torch.stack([base.to(dtype)] * 2, -1)[..., 0]
    else:
        base = base.to(dtype)
    return base.expand(t.shape)


# ---- what a case may compute; each takes the case and returns a function or None ---------------------------------

MINUS_INFINITY = lambda s, b, h, i, j: torch.where((i + 2 * j) % 5 == 0, -math.inf, s)  # noqa: E731

# z_score with an epsilon: rows of few keys deviate little, and would magnify the rounding of float32 without bound.
NORMALIZERS = [
    {"kind": "signed_softmax"}, {"kind": "sum"}, {"kind": "sum", "floor": 1.5}, {"kind": "sigmoid"}, {"kind": "relu"},
    {"kind": "relu", "divisor": "keys"}, {"kind": "relu", "divisor": "kept"}, {"kind": "identity"},
    {"kind": "identity", "divisor": "kept"}, {"kind": "z_score", "epsilon": 0.1},
    {"kind": "z_score", "epsilon": 0.1, "epsilon_place": "outside"},
    {"kind": "z_score", "epsilon": 0.1, "epsilon_place": "inside_count"}, {"kind": "softmax", "detach": True},
    {"kind": "sum", "detach": True}, {"kind": "z_score", "epsilon": 0.1, "detach": True},
]

SCORES = [
    lambda c: None,
    lambda c: lambda s, b, h, i, j: 1.5 * torch.tanh(s / 1.5),
    lambda c: (lambda slopes: lambda s, b, h, i, j: s - slopes()[h] * (i - j).abs() * 0.1)(c.captured("slopes", c.H)),
    lambda c: (lambda bias: lambda s, b, h, i, j: s + bias()[h, i - c.low, j])(c.captured("bias", c.H, c.rows, c.N)),
    lambda c: (lambda bias: lambda s, b, h, i, j: s * 0.5 + bias()[b, j])(c.captured("bias", c.B, c.N)),
    lambda c: (lambda table, bucket: lambda s, b, h, i, j: s + table()[h, bucket[j]])(
        c.captured("table", c.H, 4), c.integer("bucket", 4, c.N)),
    lambda c: (lambda t: lambda s, b, h, i, j: s * t() + t())(c.captured("temperature")),
    lambda c: (lambda rel: lambda s, b, h, i, j: s + rel()[(i - j).clamp(-4, 4) + 4])(c.captured("relative", 9)),
    lambda c: lambda s, b, h, i, j: torch.where((i + j) % 3 == 0, s, -s * 0.5),
    lambda c: MINUS_INFINITY,
    lambda c: lambda s, b, h, i, j: torch.maximum(s, s * 0.1) + torch.minimum(s, torch.sigmoid(s)),
    lambda c: lambda s, b, h, i, j: torch.exp(-s.abs()) + torch.cos(s) - torch.sqrt(s * s + 1) + torch.log(s * s + 2),
    lambda c: lambda s, b, h, i, j: (i - j) / (1 + h) * 0.125,
]

MASKS = [
    lambda c: None,
    lambda c: None,
    lambda c: lambda b, h, i, j: i >= j,
    lambda c: lambda b, h, i, j: (i >= j) & (i - j < 7),
    lambda c: lambda b, h, i, j: (i - j).abs() <= 2,
    lambda c: lambda b, h, i, j: i > j,
    lambda c: lambda b, h, i, j: (i % 3 != 1) & (j <= i),
    lambda c: (lambda n: lambda b, h, i, j: j < n[b])(c.integer("lengths", c.N + 1, c.B)),
    lambda c: (lambda d: lambda b, h, i, j: d[b, i - c.low] == d[b, j + c.rows])(
        c.integer("documents", 3, c.B, c.rows + c.N).sort(-1).values),
    lambda c: (lambda d: lambda b, h, i, j: d[j] > 0)(c.integer("kept", 3, c.N)),
    lambda c: lambda b, h, i, j: (j < 3) | (i >= j),
    lambda c: lambda b, h, i, j: torch.where(h % 2 == 0, i >= j, i <= j),
    lambda c: lambda b, h, i, j: j > 1000,
    lambda c: lambda b, h, i, j: (i // 4 - j // 4).abs() <= 1,
]

WEIGHTS = [
    lambda c: lambda b, h, i, j: 1.0 / (1 + (i - j).abs()),
    lambda c: (lambda w: lambda b, h, i, j: w()[b, j])(c.captured("weights", c.B, c.N)),
    lambda c: lambda s, b, h, i, j: torch.sigmoid(s),
]

# Captures indexed by the query position are read at i - low: positions start at the offset.
Case.low = property(lambda c: c.arguments.get("query_offset", 0))
Case.rows = property(lambda c: c.M)
Case.deviates = property(lambda c: c.arguments.get("normalizer", {}).get("kind") == "z_score" and c.tensors["v"].numel() > 0)


def error(actual, exact):
    """Largest absolute difference, and the largest magnitude; infinities must be in the same places."""
    assert actual.shape == exact.shape
    finite = torch.isfinite(exact)
    assert torch.equal(torch.isfinite(actual), finite), "not finite in other places"
    if not finite.any():
        return 0.0, 0.0
    exact = exact[finite].double()
    return (actual[finite].double() - exact).abs().max().item(), exact.abs().max().item()


@pytest.mark.parametrize("block", range(0, CASES, 30))
def test_paths_agree(block):
    for seed in range(block, block + 30):
        case = Case(seed)
        name = f"case {seed}: B={case.B} H={case.H} Hk={case.Hk} M={case.M} N={case.N} D={case.D} Dv={case.Dv}"
        exact, ran = case.run("composite", torch.float64)
        assert set(ran) <= {"attention"} and ran["attention"] == {"composite": 1}, name
        rounded, _ = case.run("composite", torch.float32)
        largest = max([t[torch.isfinite(t)].abs().max().item() for key, t in exact.items()
                       if key[0] == "d" and torch.isfinite(t).any()], default=0.0)
        for path in PATHS:
            for dtype in (torch.float64, torch.float32):
                results, ran = case.run(path, dtype)
                assert ran == {"attention": {path: 1}, "attention_backward": {path: 1}}, f"{name}: {ran}"
                for key, result in results.items():
                    found, scale = error(result, exact[key])
                    if case.deviates and key == "o":  # where all scores of a row are alike, nothing but rounding is left
                        scale = max(scale, 1e-3 * case.tensors["v"].abs().amax().item())
                    if dtype == torch.float64:
                        bound = 1e-11 * (max(scale, 1e-3 * largest) if key[0] == "d" else scale)
                    else:
                        floor = 4 * ULP * (largest if key[0] == "d" else scale)
                        bound = 4 * max(error(rounded[key], exact[key])[0], floor)
                    assert found <= bound, f"{name}, {path} {dtype} {key}: {found:.3g} > {bound:.3g}"


def test_the_cases_cover_what_they_should():
    cases = [Case(seed) for seed in range(CASES)]
    assert len(cases) >= 300
    for name in ("M", "N"):
        assert {0, 1, 2, 3, 5, 7, 13, 63, 64, 65} <= {getattr(case, name) for case in cases}
    assert any(case.B == 0 for case in cases)
    assert any(case.H != case.Hk for case in cases) and any(case.D != case.Dv for case in cases)
    strides = [t.stride() for case in cases for t in case.tensors.values() if t.dim() == 4 and t.numel()]
    assert any(0 in stride for stride in strides) and any(stride[-1] == 2 for stride in strides)
    empty = sum(torch.isneginf(case.run("composite", torch.float64)[0]["lse"]).any().item() for case in cases[:120])
    assert empty >= 20, "few cases with rows without keys"
    drawn = [case.arguments["normalizer"] for case in cases if "normalizer" in case.arguments]
    assert all(drawn.count(normalizer) >= 2 for normalizer in NORMALIZERS)


SEVERAL = {
    "row bias, causal": lambda bias, slopes: {"score": lambda s, b, h, i, j: s + bias[i, j % 7], "is_causal": True},
    "slopes, window": lambda bias, slopes: {"score": lambda s, b, h, i, j: s - slopes[h] * (i - j),
                                            "mask": lambda b, h, i, j: (i - j).abs() < 100},
    "offset, empty rows": lambda bias, slopes: {"mask": lambda b, h, i, j: i > j + 20, "query_offset": -3},
    "relu": lambda bias, slopes: {"normalizer": {"kind": "relu", "divisor": "kept"}, "is_causal": True},
    "z_score": lambda bias, slopes: {"normalizer": {"kind": "z_score", "epsilon": 1e-3}},
    "dropout": lambda bias, slopes: {"dropout": 0.3, "seed": torch.tensor(5)},
}


@pytest.mark.parametrize("name", SEVERAL)
def test_stripes_of_several_row_blocks(name):
    """Sizes at which the stripe path needs more than one block of rows, the last of them ragged."""
    B, H, M, N = 2, 4, 131, 4099
    assert 2**22 // (B * H * N) < M, "one block would hold all rows"
    shapes = ((B, H, M, 4), (B, 2, N, 4), (B, 2, N, 3), (M, 7), (H,))
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    arguments = SEVERAL[name](*leaves[3:])

    def run(path):
        o, lse = regard.attention(*leaves[:3], path=path, return_lse=True, **arguments)
        weights = torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape)
        loss = (o * weights).sum() + torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse).sum()
        return o, lse, *torch.autograd.grad(loss, leaves, allow_unused=True)

    regard.reset_path_counts()
    actual = run("stripe")
    counts = regard.path_counts()
    assert counts["attention"]["stripe"] == 1 and counts["attention_backward"]["stripe"] == 1
    for a, e in zip(actual, run("composite")):
        if e is None:
            assert a is None or not a.any()
            continue
        found, scale = error(a, e)
        assert found <= 1e-11 * scale, (name, found, scale)
