"""Attentions of every normalizer, for the tests of states and executors: one table, run whole and in parts."""

import json

import torch

import regard

B, H, HK, DH, DV = 2, 4, 2, 5, 3


def causal(b, h, i, j):
    return i >= j


def window(b, h, i, j):
    return (i - j < 4) & (j - i < 3)


def soft(s, b, h, i, j):
    return 3 * torch.tanh(s / 3)


def half(b, h, i, j):
    return 1 / (1.0 + abs(i - j))


def even(b, h, i, j):
    return j % 2 == 0


def spread(b, h, i, j):
    return abs(i - j) * 0.1


def by_distance(s, b, h, i, j):
    return 0.3 * s + 1 / (2.0 + j)


def normalizer(kind, **options):
    return {"kind": kind, **options}


def alibi(slopes):
    return lambda s, b, h, i, j: s - slopes[h] * abs(i - j)


def table(bias):
    """bias (whole keys): read by position, so every shard holds all of it."""
    return lambda s, b, h, i, j: s + bias[j] * 0.5


# name -> arguments of regard.Spec, made anew for given tensors
CASES = {
    "softmax": lambda t: {},
    "softmax causal": lambda t: {"mask": causal},
    "softmax window": lambda t: {"mask": window, "score": soft},
    "softmax alibi": lambda t: {"score": alibi(t["slopes"]), "mask": causal},
    "softmax table": lambda t: {"score": table(t["table"])},
    "softmax weight": lambda t: {"weight": half, "pair_outputs": [spread]},
    "softmax counted": lambda t: {"mask": causal, "counted": even, "pair_outputs": [spread]},
    "softmax counted beyond": lambda t: {"mask": even, "counted": causal},
    "softmax sinks": lambda t: {"mask": causal, "sinks": True},
    "softmax counted sinks": lambda t: {"mask": causal, "counted": even, "sinks": True},
    "softmax detached": lambda t: {"normalizer": normalizer("softmax", detach=True), "mask": causal},
    "softmax buckets": lambda t: {"pair_outputs": [regard.PairOutput(half, bucket=even_bucket, buckets=2)]},
    "signed softmax": lambda t: {"normalizer": "signed_softmax", "mask": causal, "pair_outputs": [spread]},
    "signed softmax epsilon": lambda t: {"normalizer": normalizer("signed_softmax", epsilon=0.1), "mask": causal,
                                         "pair_outputs": [spread]},
    "signed softmax epsilon counted": lambda t: {"normalizer": normalizer("signed_softmax", epsilon=0.1),
                                                 "counted": even, "weight": half},
    "sigmoid": lambda t: {"normalizer": "sigmoid", "mask": window, "pair_outputs": [spread]},
    "sigmoid count": lambda t: {"normalizer": "sigmoid", "score": minus_log_keys},
    "relu": lambda t: {"normalizer": "relu"},
    "relu keys": lambda t: {"normalizer": normalizer("relu", divisor="keys"), "mask": causal},
    "relu kept": lambda t: {"normalizer": normalizer("relu", divisor="kept"), "mask": causal, "weight": half,
                            "pair_outputs": [spread]},
    "identity": lambda t: {"normalizer": normalizer("identity", divisor="kept"), "mask": window},
    "identity keys": lambda t: {"normalizer": normalizer("identity", divisor="keys"), "pair_outputs": [spread]},
    "sum": lambda t: {"normalizer": normalizer("sum", floor=0.05), "score": by_distance, "mask": causal},
    "sum weight": lambda t: {"normalizer": "sum", "weight": half, "pair_outputs": [spread]},
    "sum counted": lambda t: {"normalizer": normalizer("sum", detach=True), "counted": even, "mask": window},
    "z_score": lambda t: {"normalizer": normalizer("z_score", epsilon=1e-3), "mask": causal},
    "z_score counted": lambda t: {"normalizer": normalizer("z_score", epsilon=1e-2), "counted": even, "weight": half,
                                  "pair_outputs": [spread]},
    "z_score outside": lambda t: {"normalizer": normalizer("z_score", epsilon=1e-2, epsilon_place="outside"),
                                  "mask": window},
    "z_score inside_count": lambda t: {"normalizer": normalizer("z_score", epsilon=1e-2, epsilon_place="inside_count",
                                                                detach=True)},
}


def even_bucket(b, h, i, j):
    return j % 2


def minus_log_keys(s, b, h, i, j):
    return s - torch.log(regard.expr.keys() * 1.0)


def tensors(M, N, seed=0, dtype=torch.float64):
    """q, k, v, sinks, slopes and a table over all keys."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {"q": draw(B, H, M, DH), "k": draw(B, HK, N, DH), "v": draw(B, HK, N, DV), "sinks": draw(H, 2),
            "slopes": draw(H), "table": draw(N)}


def spec_of(name, t):
    """The spec, and the tensors it captures in the order in which the op takes them."""
    spec = regard.Spec(**CASES[name](t))
    captures = [spec.captures[key] for key in sorted(spec.captures)]
    return spec.json, captures


def run(executor, name, t, path="auto", query_offset=0):
    """o, lse, pairs of one case on an executor."""
    spec, captures = spec_of(name, t)
    sinks = t["sinks"] if json.loads(spec).get("normalizer", {}).get("sinks") else None
    return torch.ops.regard.attend_on(executor, t["q"], t["k"], t["v"], spec, captures, [], sinks, None, query_offset,
                                      path)


def leaves(t):
    return {name: x.clone().requires_grad_() for name, x in t.items()}


def cotangent(x, seed=7):
    """One that depends on position only, so that shards cut it as they cut x."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)


def objective(outputs, weights):
    """sum of output * weight over all outputs; an empty row's lse of -inf counts as 0."""
    total = 0
    for out, weight in zip(outputs, weights):
        total = total + (torch.where(torch.isinf(out), 0, out) * weight).sum()
    return total


def error(a, b):
    """Largest difference over the largest magnitude; equal infinities agree."""
    if a.numel() == 0:
        return 0.0
    same = torch.isinf(a) & (a == b)
    a, b = torch.where(same, 0, a), torch.where(same, 0, b)
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() if b.abs().max() > 0 else a.abs().max().item()
