"""What every member of a group runs, whether it is a process (Gloo) or a thread: shards against the whole.

`run_all(rank, ranks, group)` returns the list of failures as text, so that one start of the processes serves many
checks. All ranks build the same whole tensors from one seed and cut them.
"""

import json
import os
import pathlib
import threading

import executor_cases as cases
import torch
from mechanisms import CASES as MECHANISMS
from mechanisms import REGISTRY, weights_of

import regard
from regard import scale

SIZES = {2: [(6, 7), (8, 8)], 3: [(7, 7), (6, 5)], 4: [(8, 8), (3, 9)]}  # queries, keys
BOUND = 1e-12
DRAWING = threading.Lock()


class Member:
    """One rank's view: its executor, its slices, and sums over the group."""

    def __init__(self, rank, ranks, group, layout):
        self.rank, self.ranks, self.layout = rank, ranks, layout
        self.executor = scale.ring(group, layout)
        self.failures = []

    def own(self, x, dim=2):
        return scale.shard(x, dim, self.layout, rank=self.rank, ranks=self.ranks)

    def total(self, x):
        return torch.ops.regard.total_on(self.executor, x.detach())

    def close(self, what, found, expected, bound=BOUND, largest=None):
        if found.shape != expected.shape:
            self.failures.append(f"rank {self.rank} of {self.ranks}, {self.layout}, {what}: shape {tuple(found.shape)}")
            return
        difference = cases.error(found, expected) if largest is None else (
            (found - expected).abs().max().item() / largest if found.numel() else 0.0)
        if not difference <= bound:
            self.failures.append(f"rank {self.rank} of {self.ranks}, {self.layout}, {what}: {difference:.1e}")


def whole(name, t):
    """Outputs and gradients of the whole call."""
    leaves = cases.leaves(t)
    out = cases.run("local", name, leaves)
    cases.objective(out, [cases.cotangent(x) for x in out]).backward()
    return [x.detach() for x in out], {key: zero_or(x.grad, x) for key, x in leaves.items()}


def zero_or(gradient, x):
    return torch.zeros_like(x) if gradient is None else gradient


def check_attention(member, name, M, N):
    """o, lse, pairs and all gradients of one case; bytes sent."""
    t = cases.tensors(M, N)
    expected, gradients = whole(name, t)
    own = {key: member.own(x) if key in "qkv" else x for key, x in t.items()}
    leaves = cases.leaves(own)
    before = scale.bytes_sent().get(member.executor, {"forward": 0, "backward": 0})
    out = cases.run(member.executor, name, leaves)
    cases.objective(out, [member.own(cases.cotangent(x)) for x in expected]).backward()
    after = scale.bytes_sent()[member.executor]
    largest = max(g.abs().max().item() for g in gradients.values())
    for label, found, right in zip(("o", "lse", "pairs"), out, expected):
        member.close(f"{name} ({M}, {N}) {label}", found.detach(), member.own(right))
    for key, x in leaves.items():
        found = zero_or(x.grad, x)
        if key in "qkv":
            member.close(f"{name} ({M}, {N}) d{key}", found, member.own(gradients[key]), largest=largest)
        else:  # every rank holds it: contributions add up
            member.close(f"{name} ({M}, {N}) d{key}", member.total(found), gradients[key], largest=largest)
    check_bytes(member, name, N, after["forward"] - before["forward"], after["backward"] - before["backward"])


def check_bytes(member, name, N, forward, backward):
    widths = cases.B * cases.HK * (cases.DH + cases.DV)
    declared = torch.ops.regard.ring_bytes(N, member.ranks, member.layout, member.rank, widths, 8)
    if (forward, backward) != tuple(declared):
        member.failures.append(f"rank {member.rank}, {name}: sent {forward}, {backward}; declared {declared}")
    if N % (2 * member.ranks) == 0:  # equal shards: the published formula
        n, W = N // member.ranks, member.ranks
        formula = ((W - 1) * n * widths * 8, (W - 1) * n * widths * 8 + W * n * widths * 8)
        if (forward, backward) != formula:
            member.failures.append(f"rank {member.rank}, {name}: sent {forward}, {backward}; formula {formula}")


def check_captures(member):
    """Captures read by column() and operands travel with the keys; those read by row() stay."""
    N = 7
    generator = torch.Generator().manual_seed(3)
    t = cases.tensors(N, N)
    row_bias, column_bias = (torch.randn(cases.B, N, generator=generator, dtype=torch.float64) for _ in range(2))
    hidden = torch.rand(cases.B, N, generator=generator) < 0.2
    qx, kx = (torch.randn(cases.B, cases.HK, N, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    spec = json.dumps({
        "nodes": [["scale"], ["dot"], ["mul", 0, 1], ["batch"], ["row"], ["capture", "rows", "float", 3, 4], ["add", 2, 5],
                  ["column"], ["capture", "columns", "float", 3, 7], ["add", 6, 8], ["dot", "x"], ["add", 9, 10],
                  ["capture", "hidden", "bool", 3, 7], ["logical_not", 12]], "score": 11, "keep": 13})

    def run(executor, q, k, v, columns, hid, rows, a, b):
        return torch.ops.regard.attend_on(executor, q, k, v, spec, [columns, hid, rows], [a, b])

    tensors = [t["q"], t["k"], t["v"], column_bias, hidden, row_bias, qx, kx]
    dims = [2, 2, 2, 1, 1, 1, 2, 2]
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in tensors]
    expected = run("local", *leaves)
    cases.objective(expected[:2], [cases.cotangent(x) for x in expected[:2]]).backward()
    own = [member.own(x, d).clone().requires_grad_(x.is_floating_point()) for x, d in zip(tensors, dims)]
    found = run(member.executor, *own)
    cases.objective(found[:2], [member.own(cases.cotangent(x)) for x in expected[:2]]).backward()
    for label, a, b in zip(("o", "lse"), found, expected):
        member.close(f"captures {label}", a.detach(), member.own(b.detach()))
    for i, (a, b) in enumerate(zip(own, leaves)):
        if b.grad is not None:
            member.close(f"captures gradient {i}", a.grad, member.own(b.grad, dims[i]))


def check_kinds(member):
    """bfloat16 and float32, dropout, an offset, no gradients."""
    t = cases.tensors(8, 8)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        low = {key: x.to(dtype) for key, x in t.items()}
        expected, gradients = whole("softmax causal", low)
        leaves = cases.leaves({key: member.own(x) if key in "qkv" else x for key, x in low.items()})
        out = cases.run(member.executor, "softmax causal", leaves)
        cases.objective(out, [member.own(cases.cotangent(x)) for x in expected]).backward()
        member.close(f"{dtype} o", out[0].detach().double(), member.own(expected[0]).double(), bound)
        for key in "qkv":
            member.close(f"{dtype} d{key}", leaves[key].grad.double(), member.own(gradients[key]).double(), bound)
    own = {key: member.own(x) if key in "qkv" else x for key, x in t.items()}
    spec, seed = json.dumps({"dropout": 0.5}), torch.tensor(11)
    with torch.no_grad():
        expected = torch.ops.regard.attend_on("local", t["q"], t["k"], t["v"], spec, [], [], None, seed)[0]
        found = torch.ops.regard.attend_on(member.executor, own["q"], own["k"], own["v"], spec, [], [], None, seed)[0]
        member.close("dropout", found, member.own(expected))
        member.close("offset", cases.run(member.executor, "softmax causal", own, query_offset=2)[0],
                     member.own(cases.run("local", "softmax causal", t, query_offset=2)[0]))


def check_collectives(member):
    """total, greatest, gather, positions with their gradients."""
    t = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    own = member.own(t, 1).clone().requires_grad_()
    weight = cases.cotangent(t[:, 0])
    share = 1 / member.ranks
    total = torch.ops.regard.total_on(member.executor, own.sum(1))
    member.close("total", total.detach(), t.sum(1))
    (total * weight * share).sum().backward()
    member.close("total gradient", own.grad, member.own(weight.unsqueeze(1).expand_as(t), 1))
    own.grad = None
    local = own.amax(1) if own.shape[1] else own.new_full((3, 2), -torch.inf) + 0 * own.sum(1)
    top = torch.ops.regard.greatest_on(member.executor, local)
    member.close("greatest", top.detach(), t.amax(1))
    (top * weight * share).sum().backward()
    leaf = t.clone().requires_grad_()
    (leaf.amax(1) * weight).sum().backward()
    member.close("greatest gradient", own.grad, member.own(leaf.grad, 1))
    own.grad = None
    gathered = torch.ops.regard.gather_on(member.executor, own, 1)
    member.close("gather", gathered.detach(), t)
    (gathered * cases.cotangent(t) * share).sum().backward()
    member.close("gather gradient", own.grad, member.own(cases.cotangent(t), 1))
    positions = torch.ops.regard.positions_on(member.executor, own.shape[1])
    member.close("positions", positions.double(), member.own(torch.arange(7), 0).double())


def check_linear(member):
    """Linear attention: decays, the delta rule, normalized, not causal, and from a given state."""
    if member.layout != "contiguous":
        return
    generator = torch.Generator().manual_seed(9)
    T = 9

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = draw(2, 4, T, 3), draw(2, 2, T, 3) / 2, draw(2, 2, T, 5)
    forms = {"plain": {}, "fixed": {"log_decay": -draw(2).abs()}, "scalar": {"log_decay": -draw(2, 2, T).abs()},
             "vector": {"log_decay": -draw(2, 2, T, 3).abs()}, "delta": {"beta": draw(2, 2, T).sigmoid()},
             "initial": {"initial_state": draw(2, 2, 3, 5), "log_decay": -draw(2, 2, T).abs()},
             "normalized": {"normalize": True}, "noncausal": {"causal": False},
             "noncausal initial": {"causal": False, "initial_state": draw(2, 2, 3, 5)},
             "noncausal normalized": {"causal": False, "normalize": True}}
    for name, form in forms.items():
        a, b = (q.abs(), k.abs()) if form.get("normalize") else (q, k)
        tensors = {"q": a, "k": b, "v": v, **{key: x for key, x in form.items() if isinstance(x, torch.Tensor)}}
        options = {key: x for key, x in form.items() if not isinstance(x, torch.Tensor)}
        sharded = {key for key, x in tensors.items() if x.dim() > 2 and x.shape[2] == T}
        results = []
        for executor in ("local", member.executor):
            ring = executor != "local"
            leaves = {key: (member.own(x) if ring and key in sharded else x).clone().requires_grad_()
                      for key, x in tensors.items()}
            o, state = torch.ops.regard.linear_on(executor, leaves["q"], leaves["k"], leaves["v"],
                                                  leaves.get("log_decay"), leaves.get("beta"),
                                                  leaves.get("initial_state"), **options)
            weight = cases.cotangent(torch.empty(2, 4, T, 5, dtype=torch.float64))
            objective = (o * (member.own(weight) if ring else weight)).sum()
            objective = objective + (state * cases.cotangent(state)).sum() / (member.ranks if ring else 1)
            objective.backward()
            results.append((o.detach(), state.detach(), {key: zero_or(x.grad, x) for key, x in leaves.items()}))
        (right, right_state, gradients), (found, state, own) = results
        member.close(f"linear {name} o", found, member.own(right))
        member.close(f"linear {name} state", state, right_state)
        for key in tensors:
            expected = member.own(gradients[key]) if key in sharded else gradients[key]
            member.close(f"linear {name} d{key}", own[key] if key in sharded else member.total(own[key]), expected,
                         largest=gradients[key].abs().max().clamp_min(1e-30).item())


def check_mechanism(member, id, config):
    """The op of a mechanism on shards against the whole; None where it ran, else its refusal."""
    N = 9
    info = REGISTRY[id]
    with DRAWING:  # threads share torch's generator
        torch.manual_seed(1)
        weights = weights_of(id, config)
        x = torch.randn(2, N, json.loads(config)["width"], dtype=torch.float64)
    options = {"seed": torch.tensor(3)}
    if info["needs_prefix"]:
        options["prefix"] = 1
    if info["needs_grid"]:
        options["grid"] = [N]

    def run(executor, given, leaves):
        return torch.ops.regard.mechanism(id, config, leaves, given, None, None, executor=executor, **options)[0]

    def leaf(w):
        return w.clone().requires_grad_(w.is_floating_point())

    leaves, given = [leaf(w) for w in weights], leaf(x)
    expected = run("local", given, leaves)
    weight = cases.cotangent(expected)
    (expected * weight).sum().backward()
    own_leaves, own = [leaf(w) for w in weights], leaf(member.own(x, 1))
    try:
        found = run(member.executor, own, own_leaves)
    except (ValueError, RuntimeError) as error:  # only a ValueError of ours reads as a refusal
        return str(error)
    pool = expected.dim() < 3 or expected.shape[1] != N  # the same on every rank; a pool may give tokens too
    own_weight = weight / member.ranks if pool else member.own(weight, 1)
    (found * own_weight).sum().backward()
    label = f"{id} {config}"
    member.close(f"{label} y", found.detach(), expected.detach() if pool else member.own(expected.detach(), 1))
    largest = max([zero_or(given.grad, given).abs().max().item()] +
                  [w.grad.abs().max().item() for w in leaves if w.grad is not None])
    member.close(f"{label} dx", zero_or(own.grad, own), member.own(zero_or(given.grad, given), 1), largest=largest)
    for i, (a, b) in enumerate(zip(own_leaves, leaves)):
        if b.grad is not None:
            member.close(f"{label} dw{i}", member.total(zero_or(a.grad, a)), b.grad, largest=largest)
    return None


MEMORIES = [("multi-query", {"causal": True}), ("multi-query", {"causal": True, "alignment": "top_left"}),
            ("softmax-attention", {"causal": True, "rope": True}), ("softmax-attention", {"normalizer": "sigmoid"}),
            ("cog-attention", {"causal": True}), ("gated-attention", {"causal": True, "rope": True}),
            ("normalized-attention", {"variant": "nap"}), ("normalized-attention", {"variant": "max"}),
            ("set-transformer", {"stages": ["mab"]}), ("mixture-of-head", {"routed_heads": 1}), ("linear-attention", {"causal": False})]


def check_memory(member):
    """Cross-attention: x and memory are dealt out, each by its own length; with and without lengths of both."""
    generator = torch.Generator().manual_seed(21)
    x, memory = (torch.randn(2, n, 8, generator=generator, dtype=torch.float64) for n in (5, 9))
    lengths = {"lengths": torch.tensor([5, 2]), "memory_lengths": torch.tensor([4, 9])}
    for id, fields in MEMORIES:
        config = json.dumps({"width": 8, "heads": 2, **fields})
        if member.layout == "zigzag" and id == "linear-attention":
            continue  # refused: its spans merge in order
        with DRAWING:
            torch.manual_seed(1)
            weights = weights_of(id, config)
        for extra in ({}, lengths):
            found = []
            for executor in ("local", member.executor):
                cut = (lambda t: member.own(t, 1)) if executor != "local" else (lambda t: t)
                a, b = cut(x).clone().requires_grad_(), cut(memory).clone().requires_grad_()
                y = torch.ops.regard.mechanism(id, config, weights, a, [b, *extra.values()], ["memory", *extra],
                                               executor=executor)[0]
                (y * cut(cases.cotangent(x))).sum().backward()
                found.append((y.detach(), a.grad, b.grad))
            for label, right, own in zip(("y", "dx", "dmemory"), *found):
                member.close(f"{id} {config} {sorted(extra)} {label}", own, member.own(right, 1),
                             largest=right.abs().max().item())


def check_mechanisms(member):
    """Every registered mechanism runs on shards as the whole, or refuses on every rank in words."""
    refused = []
    for case in MECHANISMS:
        id, config = case.values
        why = check_mechanism(member, id, config)
        if why is None:
            continue
        refused.append(id)
        if not (why.startswith("[") and "expected" in why and "found" in why):
            member.failures.append(f"rank {member.rank}: {id} refuses unclearly: {why}")
    return sorted(set(refused))


def golden_files():
    root = pathlib.Path(os.environ.get("REGARD_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden")
    return sorted((root / "ring-attention").glob("*.safetensors"))


def golden_case(file):
    """Tensors, number of ranks, layout, options."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as case:
        config = json.loads(case.metadata()["config"])
        t = {name: case.get_tensor(name) for name in case.keys()}
    named = f"{config.get('layout', '')} {config.get('algo', '')}"
    return t, len(t["layout.token_of_rank"]), "zigzag" if "zigzag" in named else "contiguous", config


def check_golden(member):
    """The published cases of this number of ranks and this layout: global tensors (B, S, H, D), lse (B, S, H)."""
    for file in golden_files():
        t, ranks, layout, config = golden_case(file)
        if ranks != member.ranks or layout != member.layout:
            continue
        tokens = t["in.k"].shape[1]
        for rank in range(ranks):
            member.close(f"{file.stem} token_of_rank[{rank}]",
                         scale.token_of_rank(tokens, ranks, layout, rank).double(),
                         t["layout.token_of_rank"][rank].double())
        leaves = [member.own(t[f"in.{x}"], 1).transpose(1, 2).clone().requires_grad_() for x in "qkv"]
        causal = config.get("causal", True)
        spec = regard.Spec(mask=cases.causal if causal else None, scale=config.get("scale"))
        o, lse, _ = torch.ops.regard.attend_on(member.executor, *leaves, spec.json, [], [])
        (o * member.own(t["w"], 1).transpose(1, 2)).sum().backward()
        member.close(f"{file.stem} out", o.detach().transpose(1, 2), member.own(t["out.out"], 1), 1e-9)
        member.close(f"{file.stem} lse", lse.detach().transpose(1, 2), member.own(t["out.lse"], 1), 1e-9)
        for leaf, x in zip(leaves, "qkv"):
            member.close(f"{file.stem} d{x}", leaf.grad.transpose(1, 2), member.own(t[f"grad.in.{x}"], 1), 1e-9)


def refusal(what):
    try:
        what()
    except ValueError as error:
        return str(error)
    return ""


def check_refusals(member):
    """All ranks refuse together, and go on together afterwards."""
    t = cases.tensors(6, 6)
    own = {key: member.own(x) if key in "qkv" else x for key, x in t.items()}
    odd = own["k"] if member.rank else own["k"][:, :, :0]
    texts = {
        "shards": refusal(lambda: torch.ops.regard.attend_on(member.executor, own["q"], odd, odd[..., :3], "{}", [], [])),
        "one rank": refusal(lambda: torch.ops.regard.attend_on(
            member.executor, own["q"], own["k"], own["v"][:, :, :0] if member.rank == 1 else own["v"], "{}", [], [])),
        "specs": refusal(lambda: torch.ops.regard.attend_on(
            member.executor, own["q"], own["k"], own["v"], json.dumps({"scale": 0.5 if member.rank else 0.25}), [], [])),
        "bias": refusal(lambda: torch.ops.regard.attend_on(
            member.executor, own["q"], own["k"], own["v"],
            json.dumps({"nodes": [["row"], ["column"], ["capture", "bias", "float", 0, 1]], "score": 2}),
            [torch.zeros(own["q"].shape[2], own["k"].shape[2], dtype=torch.float64)], [])),
    }
    expected = {"shards": "as token_of_rank deals", "one rank": "", "specs": "one call on all ranks",
                "bias": "read by row() and column() together"}
    for key, text in texts.items():
        if not text or expected[key] not in text:
            member.failures.append(f"rank {member.rank}: refusal '{key}': {text!r}")


def run_all(rank, ranks, group, cases_of=None):
    """Failures of all checks, and the ids of mechanisms that refused."""
    failures, refused = [], []
    torch.set_num_threads(1)
    for layout in scale.LAYOUTS:
        member = Member(rank, ranks, group, layout)
        for name in cases_of or cases.CASES:
            for M, N in SIZES[ranks]:
                check_attention(member, name, M, N)
        check_captures(member)
        check_kinds(member)
        check_collectives(member)
        check_linear(member)
        check_memory(member)
        check_golden(member)
        check_refusals(member)
        refused.append(check_mechanisms(member))
        failures += member.failures
    return failures, refused
