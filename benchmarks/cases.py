"""The cases and their bars, as data.

A bar holds `value >= must` (sense "at least": a speedup over peers, a share of a peak) or `value <= must` (sense "at
most": an expression's cost over the plain call, growth of memory). `host` says on which class of machine it applies:
"server" is the AMX host of 16 cores, "small" any other, "any" both.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bar:
    kind: str  # speedup, fma share, read share, cost, error, growth
    must: float
    aim: float | None = None
    peers: tuple[str, ...] = ("sdpa",)  # a speedup is taken over the fastest of them
    host: str = "any"
    ours: str = "ours"  # the candidate that is judged

    @property
    def at_least(self) -> bool:
        return self.kind in ("speedup", "fma share", "read share")


@dataclasses.dataclass(frozen=True)
class Case:
    """B batch, H heads, Hk key heads, M queries, N keys, Dh head width, Dv value width."""

    name: str
    group: str
    mode: str  # "forward" or "both" (forward and backward)
    B: int = 1
    H: int = 8
    Hk: int = 8
    M: int = 2048
    N: int = 2048
    Dh: int = 64
    Dv: int = 64
    causal: bool = False
    expression: str = ""  # a name of expressions.py
    dtype: str = "float32"
    rotate: bool = False  # over buffers whose total exceeds the last-level cache
    hide_amx: bool = False  # AMX hidden from ours and from torch, in a process of its own
    bars: tuple[Bar, ...] = ()
    peers: tuple[str, ...] = ()  # candidates beyond those of the bars, in a run that is not --must

    def candidates(self, all_peers: bool) -> list[str]:
        names = [bar.ours for bar in self.bars] + [p for bar in self.bars for p in bar.peers]
        return list(dict.fromkeys(["ours", *names, *(self.peers if all_peers else ())]))


MODES = ("forward", "both")
PEERS = ("sdpa", "eager", "compiled", "flex", "onnx")


def _case(group: str, label: str, mode: str, bars=(), peers=PEERS, **axes) -> Case:
    axes.setdefault("Hk", axes.get("H", 8))
    axes.setdefault("M", axes.get("N", 2048))
    axes.setdefault("Dv", axes.get("Dh", 64))
    return Case(f"{label}/{mode}", group, mode, bars=tuple(bars), peers=tuple(peers), **axes)


def _server(mode: str) -> Bar:
    """float32 on the 16-core host: 1.5 forward, 2.0 with the backward; its aims are what a prototype reached."""
    return Bar("speedup", 1.5, 1.8, host="server") if mode == "forward" else Bar("speedup", 2.0, 2.2, host="server")


# (label, axes, bar on a small host, aim)
SELF_ATTENTION = (
    ("b8-h12-n197-d64", dict(B=8, H=12, N=197), 1.4, 1.8),
    ("b8-h12-n1025-d64", dict(B=8, H=12, N=1025), 1.2, 1.4),
    ("h8-n512-d64", dict(N=512), 1.35, 1.4),
    ("h8-n2048-d64", dict(N=2048), 1.25, 1.4),
    ("h8-n8192-d64", dict(N=8192), 1.25, 1.4),
    ("h8-n512-d128", dict(N=512, Dh=128), 1.2, 1.22),
    ("h8-n2048-d128", dict(N=2048, Dh=128), 1.1, 1.22),
    ("h8-n8192-d128", dict(N=8192, Dh=128), 1.1, 1.22),
    ("h8-n512-d64-causal", dict(N=512, causal=True), 2.2, None),
    ("h8-n2048-d64-causal", dict(N=2048, causal=True), 1.5, 1.7),
    ("h8-n8192-d64-causal", dict(N=8192, causal=True), 1.25, 1.7),
    ("h8-n512-d128-causal", dict(N=512, Dh=128, causal=True), 2.0, None),
    ("h8-n2048-d128-causal", dict(N=2048, Dh=128, causal=True), 1.3, 1.5),
    ("h8-n8192-d128-causal", dict(N=8192, Dh=128, causal=True), 1.12, 1.5),
    ("h32-hk8-n4096-d128-causal", dict(H=32, Hk=8, N=4096, Dh=128, causal=True), 1.2, None),
)


def self_attention() -> list[Case]:
    cases = []
    for label, axes, must, aim in SELF_ATTENTION:
        for mode in MODES:
            bars = [Bar("speedup", must, aim, host="small"), _server(mode)]
            if axes["N"] >= 2048 and not axes.get("causal"):
                bars.append(Bar("fma share", 0.78, 0.88, peers=("fma_peak",)))
            peers = PEERS if mode == "forward" else ("sdpa", "eager", "compiled")
            if axes["N"] > 4096:  # an M x N matrix of scores a head: gigabytes
                peers = tuple(p for p in peers if p not in ("eager", "compiled"))
            cases.append(_case("self-attention", label, mode, bars, peers, **axes))
    return cases


def few_queries() -> list[Case]:
    """Decode and pooling: time is memory traffic, so buffers rotate beyond the last-level cache."""
    server, both = Bar("speedup", 1.5, host="server"), ("sdpa", "eager", "onnx")
    return [
        _case("few queries", "decode-h32-hk8-n16384-d128", "forward",
              [Bar("speedup", 2.6, 3.4, host="small"), server, Bar("read share", 0.70, 0.85, peers=("read_peak",))],
              ("sdpa", "eager"), H=32, Hk=8, M=1, N=16384, Dh=128, rotate=True),
        _case("few queries", "pool-m1-n65536-d768", "forward", [Bar("speedup", 1.0, host="small"), server], both,
              H=1, M=1, N=65536, Dh=768, rotate=True),
        _case("few queries", "pool-m4-n65536-d768", "forward", [Bar("speedup", 1.2, host="small"), server], both,
              H=1, M=4, N=65536, Dh=768, rotate=True),
    ]


BFLOAT16 = (
    ("b8-h12-n1025-d64", dict(B=8, H=12, N=1025)),
    ("h8-n2048-d64", dict(N=2048)),
    ("h8-n2048-d64-causal", dict(N=2048, causal=True)),
    ("h8-n2048-d128", dict(N=2048, Dh=128)),
    ("h8-n4096-d64", dict(N=4096)),
)


def bfloat16() -> list[Case]:
    """Twice: with AMX hidden from both sides (the bars of a small host) and as the machine is (of the server)."""
    cases = []
    for label, axes in BFLOAT16:
        for mode in MODES:
            hidden = Bar("speedup", 1.8, 2.2, host="small")
            amx = Bar("speedup", 1.0, 1.5 if mode == "forward" else 2.0, host="server")
            cases.append(_case("bfloat16 without AMX", f"bf16-{label}", mode, [hidden], ("sdpa",), dtype="bfloat16",
                               hide_amx=True, **axes))
            cases.append(_case("bfloat16", f"bf16-native-{label}", mode, [amx], ("sdpa",), dtype="bfloat16", **axes))
    return cases


EXPRESSIONS = ("alibi-causal", "softcap", "window", "documents")


def expressions() -> list[Case]:
    cases = []
    for name in EXPRESSIONS:
        axes = dict(N=2048, expression=name)
        cases.append(_case("expressions", f"{name}-h8-n2048-d64", "forward", [Bar("speedup", 2.5, peers=("flex",))],
                           ("eager", "compiled"), **axes))
        composite = Bar("speedup", 1.5, peers=("eager", "compiled"))
        cases.append(_case("expressions", f"{name}-h8-n2048-d64", "both", [composite], (), **axes))
    return cases


def expression_costs() -> list[Case]:
    """An expression over the same call without it: at most 15% at Dh 128, 30% at Dh 64."""
    cases = []
    for name in ("alibi", "softcap", "relative-bias", "alibi-causal"):
        for width, must in ((64, 1.30), (128, 1.15)):
            for mode in MODES:
                cases.append(_case("cost of an expression", f"cost-{name}-h8-n2048-d{width}", mode,
                                   [Bar("cost", must, peers=("plain",))], (), N=2048, Dh=width, expression=name))
    for mode in MODES:
        cases.append(_case("cost of an expression", "cost-window-h4-n16384-d64", mode,
                           [Bar("cost", 1.25, peers=("plain",))], (), H=4, N=16384, expression="window"))
    return cases


def host_overhead() -> list[Case]:
    cases = []
    for mode in MODES:
        bars = [Bar("speedup", 1.0), Bar("speedup", 1.0, ours="op")]
        cases.append(_case("host overhead", "tiny-h4-n64-d32", mode, bars, ("eager",), H=4, N=64, Dh=32))
    return cases


# (B, H, Hk, M, N, Dh, Dv, causal): nowhere slower than torch's composite, or than its fused kernel.
GRID = (
    (1, 1, 1, 1, 1, 64, 64, False), (1, 1, 1, 3, 5, 16, 16, False), (1, 2, 2, 7, 13, 24, 24, False),
    (2, 4, 4, 17, 17, 32, 32, False), (1, 4, 4, 33, 65, 32, 32, True), (1, 1, 1, 31, 257, 77, 77, False),
    (4, 8, 8, 64, 64, 16, 16, False), (8, 8, 8, 49, 49, 32, 32, False), (64, 3, 3, 49, 49, 32, 32, False),
    (16, 4, 4, 50, 50, 64, 64, True), (8, 6, 6, 197, 197, 64, 64, False), (1, 12, 12, 128, 128, 64, 64, False),
    (4, 12, 12, 128, 128, 64, 64, True), (1, 16, 16, 384, 384, 64, 64, False), (1, 1, 1, 512, 512, 256, 256, False),
    (1, 4, 4, 300, 300, 100, 100, False), (1, 4, 4, 511, 513, 96, 96, True), (2, 2, 2, 257, 1031, 48, 48, False),
    (1, 1, 1, 1024, 1024, 64, 64, False), (1, 1, 1, 2048, 2048, 128, 128, True), (1, 3, 3, 777, 777, 80, 80, False),
    (1, 8, 8, 64, 4096, 64, 64, False), (1, 8, 8, 4096, 64, 64, 64, False), (1, 8, 8, 16, 2048, 64, 64, False),
    (1, 32, 32, 256, 256, 128, 128, False), (1, 32, 8, 256, 256, 128, 128, True), (1, 32, 4, 512, 512, 64, 64, False),
    (1, 32, 8, 8, 4096, 128, 128, False), (1, 8, 1, 128, 1024, 64, 64, False), (4, 8, 2, 1, 1024, 64, 64, False),
    (1, 8, 8, 1, 4096, 64, 64, False), (16, 12, 12, 1, 512, 64, 64, False), (1, 8, 8, 2, 1024, 128, 128, False),
    (1, 16, 16, 4, 2048, 64, 64, False), (8, 1, 1, 1, 197, 768, 768, False), (8, 12, 12, 1, 197, 64, 64, False),
    (1, 8, 8, 512, 512, 64, 128, False), (1, 8, 8, 512, 512, 128, 64, False), (1, 8, 8, 300, 700, 64, 32, True),
    (2, 4, 4, 512, 512, 192, 128, True), (1, 4, 4, 1024, 1024, 16, 64, False), (1, 8, 8, 1024, 1024, 16, 16, False),
    (1, 2, 2, 1024, 1024, 256, 256, True), (1, 16, 16, 1024, 1024, 64, 64, True), (2, 32, 32, 128, 128, 32, 32, False),
)


def grid() -> list[Case]:
    """Ours at most 1.05 of the time of the faster of SDPA and the composite."""
    cases = []
    for b, h, hk, m, n, dh, dv, causal in GRID:
        label = f"grid-b{b}-h{h}-hk{hk}-m{m}-n{n}-dh{dh}-dv{dv}" + ("-causal" if causal else "")
        for mode in MODES:
            cases.append(_case("grid", label, mode, [Bar("speedup", 1 / 1.05, peers=("sdpa", "eager"))], (),
                               B=b, H=h, Hk=hk, M=m, N=n, Dh=dh, Dv=dv, causal=causal))
    return cases


def tiny() -> list[Case]:
    """Cases of a second, one for every way through the program."""
    bars = [Bar("speedup", 0.001), Bar("fma share", 1e-6, peers=("fma_peak",)),
            Bar("read share", 1e-6, peers=("read_peak",)), Bar("speedup", 0.001, ours="op")]
    small = dict(H=2, N=48, Dh=16)
    return [
        _case("tiny", "tiny-plain", "forward", bars, ("eager", "onnx"), **small),
        _case("tiny", "tiny-causal", "both", [Bar("speedup", 0.001)], ("eager",), causal=True, **small),
        _case("tiny", "tiny-window", "both", [Bar("cost", 1000.0, peers=("plain",))], ("eager",),
              expression="window", **small),
        _case("tiny", "tiny-bf16", "forward", [Bar("speedup", 0.001)], (), dtype="bfloat16", hide_amx=True, **small),
        _case("tiny", "tiny-rotating", "forward", [Bar("speedup", 0.001)], (), H=8, M=1, N=8192, Dh=64, rotate=True),
    ]


def all_cases() -> list[Case]:
    return (self_attention() + few_queries() + bfloat16() + expressions() + expression_costs() + host_overhead())
