"""regard.linear_attention: its recurrence written out, every form of it, states, packed sequences, golden cases, refusals."""

import json
import os
import pathlib

import pytest
import torch
from mechanisms import gradcheck

import regard

OP = torch.ops.regard.linear_attention
KINDS = ["none", "fixed", "scalar", "key", "value"]
CASES = [(kind, delta, normalize) for kind in KINDS for delta in (False, True) for normalize in (False, True)
         if not (normalize and (delta or kind == "value")) and not (delta and kind == "value")]
each_case = pytest.mark.parametrize("kind,delta,normalize", CASES)


def problem(kind, delta, normalize, B=2, H=4, Hk=2, T=19, D=4, V=3, dtype=torch.float64, state=True):
    """q, k, v and the keywords of one call."""
    make = lambda *shape: torch.randn(*shape, dtype=dtype)
    q, k, v = make(B, H, T, D), make(B, Hk, T, D), make(B, Hk, T, V)
    if normalize:
        q, k = q.abs(), k.abs()
    k = k / k.norm(dim=-1, keepdim=True)
    shapes = {"fixed": (Hk,), "scalar": (B, Hk, T), "key": (B, Hk, T, D), "value": (B, Hk, T, V)}
    call = {"normalize": normalize, "decay_side": "value" if kind == "value" else "key"}
    if kind != "none":
        call["log_decay"] = -make(*shapes[kind]).abs()
    if delta:
        call["beta"] = torch.rand(B, Hk, T, dtype=dtype)
    if state:
        call["initial_state"] = make(B, Hk, D, V)
        if normalize:
            call["initial_z"] = make(B, Hk, D).abs()
    return q, k, v, call


def written_out(q, k, v, log_decay=None, decay_side="key", beta=None, initial_state=None, initial_z=None, normalize=False,
                eps=1e-6, scale=None):
    """The recurrence, token by token: o, S, z."""
    B, H, T, D = q.shape
    Hk, V = k.shape[1], v.shape[3]
    scale = (1 if normalize else D ** -0.5) if scale is None else scale
    S = q.new_zeros(B, Hk, D, V) if initial_state is None else initial_state
    z = q.new_zeros(B, Hk, D) if initial_z is None else initial_z
    heads = lambda t: t.repeat_interleave(H // Hk, 1)
    rows = []
    for t in range(T):
        if log_decay is not None:
            a = log_decay.exp()
            a = a[None, :, None, None] if a.dim() == 1 else a[:, :, t, None, None] if a.dim() == 3 else \
                a[:, :, t, :, None] if decay_side == "key" else a[:, :, t, None, :]
            S = S * a
            z = z * a[..., 0] if normalize else z
        u = v[:, :, t]
        if beta is not None:
            u = beta[:, :, t, None] * (u - torch.einsum("bhdv,bhd->bhv", S, k[:, :, t]))
        S, z = S + k[:, :, t, :, None] * u[:, :, None], z + k[:, :, t]
        o = scale * torch.einsum("bhdv,bhd->bhv", heads(S), q[:, :, t])
        rows.append(o / (scale * (q[:, :, t] * heads(z)).sum(-1, keepdim=True) + eps) if normalize else o)
    return torch.stack(rows, 2), S, z


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@each_case
def test_every_form_equals_the_recurrence_with_gradients(kind, delta, normalize, paths_of):
    q, k, v, call = problem(kind, delta, normalize, T=37)
    leaves = [t.requires_grad_() for t in (q, k, v, *call.values()) if isinstance(t, torch.Tensor)]
    o, S, z = written_out(q, k, v, **call)
    w, w_state = torch.randn_like(o), torch.randn_like(S)
    expected = torch.autograd.grad((o * w).sum() + (S * w_state).sum(), leaves)
    for form, chunk, path in [("recurrent", 0, "auto"), ("chunked", 1, "stripe"), ("chunked", 3, "composite"),
                              ("chunked", 16, "auto"), ("chunked", 37, "stripe"), ("chunked", 42, "auto")]:
        counts, (found, state, z_found) = paths_of(lambda: OP(q, k, v, form=form, chunk=chunk, path=path, **call))
        ran = path if path != "auto" else "stripe" if form == "chunked" and chunk < 37 else "composite"
        assert counts == {"linear_attention": {ran: 1}}
        close(found, o)
        close(state, S)
        if normalize:
            close(z_found, z)
        for got, want in zip(torch.autograd.grad((found * w).sum() + (state * w_state).sum(), leaves), expected):
            close(got, want, 1e-9)


@each_case
def test_first_second_and_forward_derivatives(kind, delta, normalize):
    q, k, v, call = problem(kind, delta, normalize, T=11)
    names = [name for name, value in call.items() if isinstance(value, torch.Tensor)]
    options = {name: value for name, value in call.items() if name not in names}

    def function(q, k, v, *rest):
        return OP(q, k, v, chunk=4, form="chunked", path="stripe", allow_growth=True, **options, **dict(zip(names, rest)))[:2]

    gradcheck(function, q, k, v, *[call[name] for name in names])


@each_case
def test_two_runs_with_the_state_between_are_one(kind, delta, normalize):
    q, k, v, call = problem(kind, delta, normalize, T=23)
    whole = OP(q, k, v, **call)
    cut = lambda t, s: t[:, :, s] if t.dim() > 2 else t
    first, second = dict(call), dict(call)
    for name in ("log_decay", "beta"):
        if name in call:
            first[name], second[name] = cut(call[name], slice(0, 9)), cut(call[name], slice(9, None))
    o1, S, z = OP(q[:, :, :9], k[:, :, :9], v[:, :, :9], **first)
    second["initial_state"] = S
    if normalize:
        second["initial_z"] = z
    o2, S, z = OP(q[:, :, 9:], k[:, :, 9:], v[:, :, 9:], **second)
    close(torch.cat([o1, o2], 2), whole[0])
    close(S, whole[1])
    close(z, whole[2])


@each_case
def test_packed_equals_separate_and_compiles(kind, delta, normalize):
    q, k, v, call = problem(kind, delta, normalize, B=1, T=21, state=False)
    bounds = [0, 5, 5, 18, 21]
    o, S, _ = OP(q, k, v, cu_seqlens=torch.tensor(bounds), **call)
    for i, (a, b) in enumerate(zip(bounds, bounds[1:])):
        cut = {n: t[:, :, a:b] if isinstance(t, torch.Tensor) and t.dim() > 2 else t for n, t in call.items()}
        alone = OP(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], **cut)
        close(o[:, :, a:b], alone[0])
        close(S[i:i + 1], alone[1])
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v, c: OP(q, k, v, cu_seqlens=c, **call)[:2], backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(q, k, v, torch.tensor(bounds)), (o, S)):
        close(found, expected)


@pytest.mark.parametrize("kind,delta", [
    ("none", False), ("scalar", True), pytest.param("key", True, marks=pytest.mark.slow),
    pytest.param("value", False, marks=pytest.mark.slow)])
def test_compiles_with_dynamic_lengths(kind, delta):
    torch._dynamo.reset()
    names = [n for n in ("log_decay", "beta") if n in problem(kind, delta, False)[3]]
    side = "value" if kind == "value" else "key"
    f = lambda q, k, v, *rest: OP(q, k, v, decay_side=side, **dict(zip(names, rest)))[:2]
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
    for T in (21, 70):
        q, k, v, call = problem(kind, delta, False, T=T)
        inputs = (q, k, v, *[call[n] for n in names])
        for found, expected in zip(compiled(*inputs), f(*inputs)):
            close(found, expected)


def test_plain_attention_without_a_softmax():
    q, k, v, _ = problem("none", False, False, H=2)
    close(OP(q, k, v, scale=0.3)[0], (0.3 * q @ k.transpose(2, 3)).tril() @ v)
    close(OP(q[:, :, :7], k, v, causal=False, scale=0.3)[0], 0.3 * q[:, :, :7] @ k.transpose(2, 3) @ v)


def test_decays_of_zero_and_broadcast_ones():
    q, k, v, call = problem("scalar", False, False, state=False)
    close(OP(q, k, v, log_decay=torch.zeros_like(call["log_decay"]))[0], OP(q, k, v)[0])
    scalar = OP(q, k, v, **call)[0]
    wide = lambda D: call["log_decay"].unsqueeze(-1).expand(-1, -1, -1, D)
    close(OP(q, k, v, log_decay=wide(4))[0], scalar)
    close(OP(q, k, v, log_decay=wide(3), decay_side="value")[0], scalar)


def test_the_delta_rule_retrieves_what_it_wrote():
    q, k, v, _ = problem("none", True, False, H=2, state=False)
    beta = torch.ones(2, 2, 19, dtype=torch.float64)
    close(OP(k, k, v, beta=beta, scale=1.0)[0], v)
    S = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    g = -torch.rand(2, 2, 19, dtype=torch.float64)
    close(OP(q, k, v, beta=0 * beta, log_decay=g, initial_state=S)[1], S * g.sum(2).exp()[..., None, None])


def test_strong_decays_and_resets():
    q, k, v, _ = problem("none", False, False, H=2, T=40, dtype=torch.float32, state=False)
    for g in (torch.full((2, 2, 40), -50.0), torch.full((2, 2, 40, 4), -torch.inf)):
        close(OP(q, k, v, log_decay=g, chunk=32)[0], 0.5 * (q * k).sum(-1, keepdim=True) * v, 1e-5)
    g = torch.where(torch.rand(2, 2, 40, 4) < 0.3, -torch.inf, -torch.rand(2, 2, 40, 4))
    close(OP(q, k, v, log_decay=g)[0], written_out(q, k, v, g)[0], 1e-5)


def test_normalized_weights_are_a_distribution():
    q, k, v, call = problem("scalar", False, True, state=False)
    close(OP(q, k, torch.ones_like(v), **call)[0], torch.ones(2, 4, 19, 3, dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("kind,delta,normalize", [("none", False, True), ("key", False, False),
                                                  ("scalar", True, False)])
def test_padding_is_as_if_cut_whatever_it_holds(kind, delta, normalize):
    q, k, v, call = problem(kind, delta, normalize)
    hidden = torch.arange(19) >= torch.tensor([19, 8])[:, None]
    for t in (k, v):
        t.masked_fill_(hidden[:, None, :, None], torch.nan)
    o, S, _ = OP(q, k, v, padding=hidden, **call)
    row = {n: (t[1:, :, :8] if n in ("log_decay", "beta") else t[1:]) if isinstance(t, torch.Tensor) else t for n, t in call.items()}
    alone = OP(q[1:, :, :8], k[1:, :, :8], v[1:, :, :8], **row)
    close(o[1:, :, :8], alone[0])
    close(S[1:], alone[1])


def test_nan_reaches_no_earlier_row():
    for kind, delta, normalize in CASES:
        q, k, v, call = problem(kind, delta, normalize)
        before = OP(q, k, v, **call)[0][:, :, :6]
        for t in (q, k, v, *[call[n] for n in ("log_decay", "beta") if n in call and call[n].dim() > 1]):
            t[:, :, 6:] = torch.nan
        close(OP(q, k, v, **call)[0][:, :, :6], before)


def test_transforms_and_half_types():
    q, k, v, call = problem("key", False, False, state=False)
    many = torch.func.vmap(lambda q, k, v, g: OP(q[None], k[None], v[None], log_decay=g[None])[0][0])(q, k, v, call["log_decay"])
    close(many, OP(q, k, v, **call)[0])
    narrow = [t.bfloat16() for t in (q, k, v)]
    o, S, _ = OP(*narrow, log_decay=call["log_decay"].float())
    assert o.dtype == torch.bfloat16 and S.dtype == torch.float32
    close(o.double(), OP(*[t.double() for t in narrow], **call)[0], 2e-2)


@pytest.mark.parametrize("change,expected", [
    ({"k": torch.randn(2, 3, 19, 4).double()}, "v (B, Hk, T, Dv) for k (2, 3, 19, 4) Double; found (2, 2, 19, 3) Double"),
    ({"log_decay": torch.ones(2, 2, 19).double()}, "log_decay <= 0 (or allow_growth); found a positive entry"),
    ({"log_decay": torch.ones(5).double()}, "log_decay (2), (2, 2, 19) or (2, 2, 19, 4), floating (decay_side key); found (5) Double"),
    ({"initial_state": torch.zeros(2, 2, 4, 3)}, "initial_state (2, 2, 4, 3) Double; found (2, 2, 4, 3) Float"),
    ({"cu_seqlens": torch.tensor([0, 19])}, "B = 1 with cu_seqlens; found k (2, 2, 19, 4) Double"),
    ({"causal": False, "beta": torch.rand(2, 2, 19).double()},
     "causal with a decay or the delta rule, which need an order; found causal = false"),
    ({"normalize": True, "beta": torch.rand(2, 2, 19).double()}, "no normalizer with the delta rule; found normalize and beta"),
    ({"form": "recurent"}, "form to be one of 'auto', 'chunked', 'recurrent'; found 'recurent'"),
    ({"path": "fused"}, "a path that it has: auto, stripe, composite; found 'fused'"),
])
def test_refusals(change, expected):
    q, k, v, call = problem("none", False, False, state=False)
    with pytest.raises(ValueError) as error:
        OP(**{"q": q, "k": k, "v": v, **call, **change})
    assert str(error.value).startswith("[linear_attention] expected " + expected)


def golden_files():
    folder = pathlib.Path(os.environ.get("REGARD_GOLDEN",
                                         pathlib.Path(__file__).parents[1] / "golden")) / "linear-attention"
    return sorted(folder.glob("*.safetensors"))


FEATURES = {"elu+1": lambda x: torch.nn.functional.elu(x) + 1, "elu1": lambda x: torch.nn.functional.elu(x) + 1,
            "relu": torch.relu, "identity": lambda x: x, "none": lambda x: x, "softmax": lambda x: x.softmax(-1)}


@pytest.mark.golden
@pytest.mark.parametrize("file", golden_files() or [pytest.param(None, marks=pytest.mark.skip("no golden file"))],
                         ids=lambda f: f.stem if f else "none")
@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_golden(file, form):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(file, "pt") as f:
        meta, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}
    config, tolerance = json.loads(meta["config"]), 1e-9
    leaves = {n[3:]: t.requires_grad_(t.is_floating_point()) for n, t in tensors.items() if n.startswith("in.")}
    heads_first = lambda t: t.transpose(1, 2) if config.get("layout", "B,T,H,D") == "B,T,H,D" else t
    phi = FEATURES[config.get("feature_map", "identity")]
    q, k, v = phi(heads_first(leaves["q"])), phi(heads_first(leaves["k"])), heads_first(leaves["v"])
    causal = config.get("causal", True)
    if form == "recurrent" and not causal:
        pytest.skip("the recurrent form is causal")
    call = {"causal": causal, "normalize": config.get("normalize", False), "scale": config.get("scale")}
    if "eps" in config:
        call["eps"] = config["eps"]
    for name in ("log_decay", "beta"):
        if name in leaves:
            call[name] = leaves[name] if leaves[name].dim() == 1 else heads_first(leaves[name])
    call["decay_side"] = "value" if config.get("decay") == "value_vector" else "key"
    for ours, names in (("initial_state", ("initial_state",)), ("initial_z", ("initial_z",)), ("cu_seqlens", ("cu_seqlens",))):
        for name in names:
            if name in leaves:
                call[ours] = leaves[name]
    if "key_lengths" in leaves:
        call["padding"] = torch.arange(k.shape[2]) >= leaves["key_lengths"].long()[:, None]
    o, S, z = OP(q, k, v, form=form if causal else "auto", chunk=5, **call)
    found = {"out": heads_first(o), "final_state": S, "final_z": z}
    weights = {n[2:]: t for n, t in tensors.items() if n.startswith("w.")} or {"out": tensors["w"]}
    sum((found[name] * w).sum() for name, w in weights.items()).backward()
    compared = 0
    for name, expected in tensors.items():
        ours = found[name[4:]] if name.startswith("out.") else leaves[name[8:]].grad if name.startswith("grad.in.") else None
        if ours is None:
            assert name.startswith(("in.", "w")), name
            continue
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max(), name
        compared += 1
    assert compared >= 2
