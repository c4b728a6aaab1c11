"""Multi-token attention: the formula written out, its special kernels, cache, packing, padding, memory."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mechanisms import call, gradcheck, main, named, refuses, tokens, weights_of

import regard

ID = "multi-token-attention"
SMALL = {"query_kernel_size": 3, "key_kernel_size": 5, "after_sm_query_kernel_size": 2, "after_sm_key_kernel_size": 3}
NONE = {"query_kernel_size": None, "key_kernel_size": None, "after_sm_query_kernel_size": None,
        "after_sm_key_kernel_size": None, "pre_sm_linear_head": False, "head_kernel_size": None, "group_norm": False,
        "add_gating": False}
CONFIGS = {
    "all": {**SMALL, "head_kernel_size": 2},
    "left, elementwise gate, rescaled": {**SMALL, "pad_key": "left", "key_kernel_size": 4, "gate_1d": False,
                                         "layer_norm_rescale": True, "layer_id": 3},
    "right, linear after, grouped keys": {**SMALL, "pad_key": "right", "kv_heads": 2, "head_kernel_size": None,
                                          "post_sm_linear_head": True},
    "before only": {**NONE, "query_kernel_size": 3, "key_kernel_size": 3, "pre_sm_linear_head": True},
    "after only, not causal": {**NONE, "after_sm_query_kernel_size": 3, "after_sm_key_kernel_size": 3, "causal": False,
                               "add_gating": True},
    "softmax attention": NONE,
}


def configured(**options):
    return {"width": 16, "heads": 4, **options}


def reference(config, weights, x):
    """The formulas as they stand, on whole maps."""
    c = {**json.loads(torch.ops.regard.declare(ID, json.dumps(config)))["config"]}
    w = named(ID, config, weights)
    H, Hk = c["heads"], c["kv_heads"] or c["heads"]
    q, k, v = ((x @ w[f"w{n}.weight"].T).unflatten(-1, (h, -1)).transpose(1, 2)
               for n, h in (("q", H), ("k", Hk), ("v", Hk)))
    N, Dh = x.shape[1], q.shape[-1]
    if c["rope"]:
        angle = torch.arange(N).to(x)[:, None] * c["rope_theta"] ** (-torch.arange(0, Dh, 2).to(x) / Dh)
        turn = torch.polar(torch.ones_like(angle), angle)
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
                for t in (q, k))
    k, v = (t.repeat_interleave(H // Hk, 1) for t in (k, v))
    seen = torch.ones(N, N, dtype=torch.bool).tril() if c["causal"] else torch.ones(N, N, dtype=torch.bool)

    def filtered(map, kernel):
        queries, keys = kernel.shape[2:]
        left = {"both": (keys - 1) // 2, "left": keys - 1, "right": 0}[c["pad_key"]]
        return F.conv2d(F.pad(map * seen, (left, keys - 1 - left, queries - 1, 0)), kernel, groups=H)

    s = q @ k.transpose(-1, -2) * (c["scale"] or Dh ** -0.5)
    if "mta_kernel" in w:
        s = filtered(s, w["mta_kernel"])
    if "wpsm.weight" in w:
        s = torch.einsum("ed,bdij->beij", w["wpsm.weight"], s)
    a = torch.softmax(s.masked_fill(~seen, -torch.inf), -1)
    if "mta_kernel_after_sm" in w:
        a = filtered(a, w["mta_kernel_after_sm"]) * seen
    if "head_kernel" in w:
        size = w["head_kernel"].shape[-1]
        a = torch.einsum("bgdij,gde->bgeij", a.unflatten(1, (-1, size)), w["head_kernel"]).flatten(1, 2)
    if "wposm.weight" in w:
        a = torch.einsum("ed,bdij->beij", w["wposm.weight"], a)
    o = (a @ v).transpose(1, 2)
    if c["group_norm"]:
        o = o / (o.square().mean(-1, keepdim=True) + c["norm_epsilon"]).sqrt() * w["subln.weight"]
        if c["layer_norm_rescale"]:
            o = o * (1 - (0.8 - 0.6 * torch.exp(torch.tensor(-0.3 * c["layer_id"], dtype=x.dtype))))
    if c["add_gating"]:
        o = o * torch.sigmoid(o @ w["gate.weight"].T + w["gate.bias"])
    return o.flatten(2) @ w["wo.weight"].T, a


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("block", [0, 1, 4])
def test_equals_the_formula(options, block):
    config = configured(**options, block_rows=block)
    weights, x = weights_of(ID, config), tokens(config, length=11)
    expected, map = reference(config, weights, x)
    y, attn = call(ID, config, weights, x, outputs=["attn"])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(attn, map, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(main(ID, config, weights, x, path="composite"), expected, rtol=1e-10, atol=1e-12)


def test_stripes_run_and_are_counted(paths_of):
    config = configured(**SMALL)
    weights, x = weights_of(ID, config), tokens(config)
    assert paths_of(lambda: main(ID, config, weights, x))[0] == {"attention": {"stripe": 1}}
    assert paths_of(lambda: main(ID, config, weights, x, path="composite"))[0] == {"attention": {"composite": 1}}


@pytest.mark.parametrize("causal", [True, False])
def test_the_identity_initialization_is_softmax_attention(causal):
    """Property 1: identity kernels and mixers, neither norm nor gate."""
    config = configured(group_norm=False, add_gating=False, causal=causal, rope=False)
    weights, x = torch.ops.regard.initialize(ID, json.dumps(config), torch.float64), tokens(config, length=9)
    w = named(ID, config, weights)
    plain = {"width": 16, "heads": 4, "qkv_bias": False, "out_bias": False, "causal": causal}
    together = [torch.cat([w["wq.weight"], w["wk.weight"], w["wv.weight"]]), w["wo.weight"]]
    torch.testing.assert_close(main(ID, config, weights, x), main("softmax-attention", plain, together, x),
                               rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method, expected", [
    ("identity", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]),
    ("diagonal", [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
    ("const", [[0.3] * 5] * 3)])
def test_initializations(method, expected):
    config = configured(**SMALL, init_method=method, depth_factor=10, width=64)
    w = named(ID, config, torch.ops.regard.initialize(ID, json.dumps(config)))
    torch.testing.assert_close(w["mta_kernel"], torch.tensor(expected, dtype=torch.float32).expand(4, 1, 3, 5))
    assert w["mta_kernel_after_sm"].shape == (4, 1, 2, 3)
    torch.testing.assert_close(w["wpsm.weight"], torch.eye(4))
    torch.testing.assert_close(w["head_kernel"], torch.eye(4).unsqueeze(0))
    assert 0.11 < w["wq.weight"].std() < 0.13 and w["wq.weight"].abs().max() <= 3 / 8
    assert 0.011 < w["wo.weight"].std() < 0.013 and (w["gate.bias"] == 0).all()
    uniform = named(ID, config, torch.ops.regard.initialize(ID, json.dumps({**config, "init_method": "uniform"})))
    assert uniform["mta_kernel"].abs().max() <= 1 and uniform["mta_kernel"].std() > 0.4


def test_a_permutation_before_the_softmax_permutes_maps():
    """Property 3."""
    config = configured(**{**NONE, "pre_sm_linear_head": True})
    weights, x, order = weights_of(ID, config, spread=0), tokens(config), torch.tensor([2, 0, 3, 1])
    plain = call(ID, config, weights, x, outputs=["attn"])[1]
    weights[4] = torch.eye(4, dtype=torch.float64)[order]
    torch.testing.assert_close(call(ID, config, weights, x, outputs=["attn"])[1], plain[:, order])


def test_a_kernel_of_a_single_one_shifts_scores_by_a_key():
    """Property 4: 1 at [last query, center + 1] gives the score of the next key, 0 behind the last."""
    config = configured(**{**NONE, "query_kernel_size": 2, "key_kernel_size": 3, "causal": False})
    weights, x = weights_of(ID, config), tokens(config)
    weights[4] = torch.tensor([[0, 0, 0], [0, 0, 1.0]], dtype=torch.float64).expand(4, 1, 2, 3).contiguous()
    shifted = call(ID, config, weights, x, outputs=["attn"])[1]
    weights[4] = torch.tensor([[0, 0, 0], [0, 1.0, 0]], dtype=torch.float64).expand(4, 1, 2, 3).contiguous()
    plain = call(ID, config, weights, x, outputs=["attn"])[1]
    ratio = shifted.log() - plain.log().roll(-1, -1)
    torch.testing.assert_close(ratio[..., :-1], ratio[..., :1].expand_as(ratio[..., :-1]))


def test_masses_of_rows_after_the_second_kernel():
    """Property 6: away from the borders a row's sum is the kernel's weighted sum of the rows before it, whose sums are 1."""
    config = configured(**{**NONE, "after_sm_query_kernel_size": 2, "after_sm_key_kernel_size": 3, "causal": False,
                           "scale": 60.0})
    weights, x = weights_of(ID, config), tokens(config, length=12)
    plain = {**config, "after_sm_query_kernel_size": None, "after_sm_key_kernel_size": None}
    before = call(ID, plain, weights[:4], x, outputs=["attn"])[1]
    after = call(ID, config, weights, x, outputs=["attn"])[1]
    kernel = weights[4][:, 0]  # (H, 2, 3)
    rows = F.pad(before, (0, 0, 1, 0))
    expected = sum(torch.einsum("h,bhi->bhi", kernel[:, a, b], rows[:, :, a:a + 12, max(0, b - 1):12 + min(0, b - 1)].sum(-1))
                   for a in range(2) for b in range(3))
    torch.testing.assert_close(after.sum(-1), expected)


def test_parity_is_a_second_softmax():
    config = configured(**CONFIGS["before only"])
    weights, x = weights_of(ID, config), tokens(config)
    once = call(ID, config, weights, x, outputs=["attn"])[1]
    twice = call(ID, {**config, "parity": True}, weights, x, outputs=["attn"])[1]
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(twice, torch.softmax(once.masked_fill(~seen, -torch.inf), -1))
    after = configured(**CONFIGS["all"])
    weights = weights_of(ID, after)
    torch.testing.assert_close(main(ID, {**after, "parity": True}, weights, x), main(ID, after, weights, x))


@pytest.mark.parametrize("options", [c for c in CONFIGS.values() if c.get("causal", True)])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 3, 1], [2, 7]])
def test_decoding_equals_one_call(options, chunks):
    """Property 5: with k, v and the last cq + cq2 - 2 queries."""
    module = regard.nn.create(ID, **configured(**options), dtype=torch.float64)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    cache, parts = None, []
    for part in x.split(chunks, 1):
        y, cache = module.decode(part, cache)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), module(x))
    rows = (options.get("query_kernel_size") or 1) + (options.get("after_sm_query_kernel_size") or 1) - 2
    assert cache["k"].shape[2] == 9 and ("q" not in cache if rows == 0 else cache["q"].shape[2] == min(9, rows))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_packed_equals_apart(options):
    """The filters are cut where segments begin."""
    config = configured(**options, block_rows=4)
    weights, parts = weights_of(ID, config), [torch.randn(1, n, 16, dtype=torch.float64) for n in (3, 1, 7)]
    packed = main(ID, config, weights, torch.cat(parts, 1), {"cu_seqlens": torch.tensor([0, 3, 4, 11])})
    torch.testing.assert_close(packed, torch.cat([main(ID, config, weights, p) for p in parts], 1))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_padding_equals_cut(options):
    config = configured(**options)
    weights, x = weights_of(ID, config), tokens(config, length=8)
    y = main(ID, config, weights, x, {"lengths": torch.tensor([8, 3])})
    torch.testing.assert_close(y[1, :3], main(ID, config, weights, x[1:, :3])[0])
    assert (y[1, 3:] == 0).all()


def test_cross_attention_and_hidden_pairs():
    config = configured(**SMALL, causal=False, rope=False, block_rows=2)
    weights, x, memory = weights_of(ID, config), tokens(config), torch.randn(2, 9, 16, dtype=torch.float64)
    cut = main(ID, config, weights, x, {"memory": memory[:, :5].contiguous()})
    torch.testing.assert_close(main(ID, config, weights, x, {"memory": memory, "memory_lengths": torch.tensor([5, 5])}), cut)
    hidden = (torch.arange(9) >= 5).expand(6, 9)
    torch.testing.assert_close(main(ID, config, weights, x, {"memory": memory, "hidden": hidden}), cut)
    causal, triangle = {**config, "causal": True}, torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(main(ID, config, weights, x, {"hidden": triangle}), main(ID, causal, weights, x))


def test_dropout_is_replayed_and_independent_of_stripes():
    config = configured(**SMALL, attn_drop=0.4)
    weights, x, seed = weights_of(ID, config), tokens(config), torch.tensor(5)
    first = main(ID, config, weights, x, training=True, seed=seed)
    torch.testing.assert_close(main(ID, {**config, "block_rows": 2}, weights, x, training=True, seed=seed), first)
    assert not torch.allclose(first, main(ID, config, weights, x))
    attn = call(ID, config, weights, x, training=True, seed=seed, outputs=["attn"])[1]
    assert 0.2 < (attn.tril()[attn.new_ones(6, 6).tril().bool().expand_as(attn)] == 0).double().mean() < 0.6


def test_gradcheck():
    config = {"width": 4, "heads": 2, **SMALL, "block_rows": 2}  # the theorem `gradients` checks the other options
    weights, x = weights_of(ID, config), torch.randn(1, 3, 4, dtype=torch.float64)
    assert gradcheck(lambda x, *w: main(ID, config, w, x), x, *weights)


def test_the_filter_equals_a_depthwise_convolution():
    """Kernel and gradients of every instruction set's tile edges: odd sizes around tiles of 16 x 256."""
    for H, N, sizes in [(2, 5, (1, 1)), (3, 17, (2, 4)), (1, 271, (6, 11)), (2, 33, (9, 9))]:
        config = {"width": 2 * H, "heads": H, **NONE, "query_kernel_size": sizes[0], "key_kernel_size": sizes[1],
                  "pad_key": "left", "rope": False}
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
            weights = [w.requires_grad_() for w in weights_of(ID, config, dtype)]
            x = torch.randn(1, N, 2 * H, dtype=dtype, requires_grad=True)
            y, expected = main(ID, config, weights, x), reference(config, weights, x)[0]
            torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
            g = torch.randn_like(y)
            ours, theirs = (torch.autograd.grad(t, [x, *weights], g) for t in (y, expected))
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("config, message", [
    ({"heads": 3}, "expected width to be a multiple of heads, or head_width given; found width 8, heads 3"),
    ({"heads": 4, "kv_heads": 3}, "expected heads to be a multiple of kv_heads; found heads 4, kv_heads 3"),
    ({"heads": 4, "head_kernel_size": 3}, "expected heads to be a multiple of head_kernel_size; found heads 4, head_kernel_size 3"),
    ({"heads": 2, "key_kernel_size": 4}, "expected an odd key_kernel_size with pad_key 'both'; found 4"),
    ({"heads": 2, "query_kernel_size": None},
     "expected query_kernel_size and key_kernel_size both given or both null; found null and 11"),
    ({"heads": 2, "post_sm_linear_head": True}, "expected head_kernel_size null with post_sm_linear_head; found 0"),
    ({"heads": 2, "pad_key": "lef"}, "expected pad_key among 'both', 'left', 'right'; found 'lef'; did you mean 'left'?"),
])
def test_refused_configurations(config, message):
    with pytest.raises(ValueError) as error:
        torch.ops.regard.declare(ID, json.dumps({"width": 8, **config}))
    assert str(error.value) == f"[{ID}] {message}"


def test_refused_calls():
    config = {"width": 8, "heads": 2}
    refuses(f"[{ID}] expected memory only where causal is false; found both", ID, config,
            inputs={"memory": torch.randn(2, 5, 8)})
    refuses(f"[{ID}] expected path auto, stripe or composite (a filter over scores runs in stripes); found fused", ID,
            config, path="fused")
    refuses(f"[{ID}] expected positions only with rope; found positions", ID, {**config, "rope": False},
            inputs={"positions": torch.arange(6)})
    refuses(f"[{ID}] expected hidden, bool that broadcasts to (B, H, M, N) = (2, 2, 6, 6); found (6, 5) bool", ID, config,
            inputs={"hidden": torch.zeros(6, 5, dtype=torch.bool)})


PROGRAM = """
import json, resource, sys, time, torch, regard
n, config = int(sys.argv[1]), json.dumps({"width": 64, "heads": 4})   # kernels 6 x 11 before and after, heads mixed
torch.set_num_threads(2)
weights = [w.requires_grad_() for w in torch.ops.regard.initialize("multi-token-attention", config)]
step = lambda x: torch.ops.regard.mechanism("multi-token-attention", config, weights, x)[0].square().mean()
step(torch.randn(1, 64, 64, requires_grad=True)).backward()           # what torch allocates once is not counted
x = torch.randn(1, n, 64, requires_grad=True)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
step(x).backward()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert torch.isfinite(x.grad).all() and all(torch.isfinite(w.grad).all() for w in weights)
print(json.dumps({"over": (peak - before) / 2**20, "total": peak / 2**20, "seconds": time.time() - start}))
"""


@pytest.mark.slow
def test_peak_memory_at_16384_tokens():
    """Forward and backward under 2 GiB, the whole process counted; one map of scores alone would take 4 GiB."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, "16384"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    print(f"{measured['total']:.2f} GiB in all, {measured['over']:.2f} over the start, {measured['seconds']:.0f} s")
    assert measured["total"] < 2 and measured["over"] < 1
