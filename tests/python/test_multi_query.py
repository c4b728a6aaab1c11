"""multi-query: equal to multi-head attention with repeated key heads, its conversion, cache, packed form, refusals."""

import itertools
import json

import pytest
import regard
import torch
from mechanisms import call, decoded, gradcheck, main, named, refuses, tokens, weights_of

ID = "multi-query"
F = torch.nn.functional
B, M, N = 3, 7, 9
CONFIGS = [{"width": 12, "heads": 4}, {"width": 12, "heads": 6, "kv_heads": 2, "kv_bias": True, "out_bias": True},
           {"width": 12, "heads": 4, "kv_heads": 2, "head_width": 5, "value_width": 2, "q_bias": True, "scale": 1.0},
           {"width": 12, "heads": 3, "kv_heads": 3, "memory_width": 5}]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)


def written_out(config, weights, x, memory=None, causal_offset=None, hidden=None):
    """Every key head repeated H / Hk times, everything dense."""
    w, memory = named(ID, config, weights), x if memory is None else memory
    heads, kv_heads = config["heads"], config.get("kv_heads", 1)
    q, k, v = (F.linear(t, w[f"{n}.weight"], w.get(f"{n}.bias")).unflatten(-1, (h, -1)).transpose(1, 2)
               for n, t, h in (("wq", x, heads), ("wk", memory, kv_heads), ("wv", memory, kv_heads)))
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    s = q @ k.transpose(-1, -2) * config.get("scale", q.shape[-1] ** -0.5)
    if causal_offset is not None:
        s = s.masked_fill(torch.arange(k.shape[2]) > torch.arange(x.shape[1])[:, None] + causal_offset, -torch.inf)
    if hidden is not None:
        s = s.masked_fill(hidden, -torch.inf)
    p = s.softmax(-1).nan_to_num(0)
    return F.linear((p @ v).transpose(1, 2).flatten(2), w["wo.weight"], w.get("wo.bias")), p


def memory_of(config):
    return torch.randn(B, N, config.get("memory_width", 12), dtype=torch.float64)


def agree(got, expected, leaves):
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    w = torch.randn_like(got)
    for a, e in zip(*(torch.autograd.grad((y * w).sum(), leaves) for y in (got, expected))):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


@each_config
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("order", [None, "top_left", "bottom_right"])
def test_equals_the_formula_with_gradients(config, cross, order):
    if "memory_width" in config and not cross:
        pytest.skip("needs a memory")
    leaves = [t.requires_grad_() for t in (tokens(config, B, M), *weights_of(ID, config), memory_of(config))]
    x, weights, inputs = leaves[0], leaves[1:-1], {"memory": leaves[-1]} if cross else {}
    used = leaves if cross else leaves[:-1]
    call_config = {**config, "causal": order is not None, "alignment": order or "bottom_right"}
    y, attn = call(ID, call_config, weights, x, inputs, outputs=["attn"])
    offset = None if order is None else (N - M) if cross and order == "bottom_right" else 0
    expected, p = written_out(config, weights, x, inputs.get("memory"), offset)
    agree(y, expected, used)
    torch.testing.assert_close(attn, p)


@each_config
def test_masks_and_lengths(config):
    weights, x, memory = weights_of(ID, config), tokens(config, B, M), memory_of(config)
    hidden, key_hidden = torch.rand(B, 1, M, N) < 0.3, torch.rand(B, N) < 0.3
    hidden[0, :, 2] = True  # a query without keys
    lengths, memory_lengths = torch.tensor([M, 3, 0]), torch.tensor([N, 4, 0])
    seen = hidden | key_hidden[:, None, None] | (torch.arange(N) >= memory_lengths[:, None])[:, None, None]
    expected, _ = written_out(config, weights, x, memory, hidden=seen)
    expected = expected.masked_fill((torch.arange(M) >= lengths[:, None])[..., None], 0)
    poisoned = memory.masked_fill((torch.arange(N) >= memory_lengths[:, None])[..., None], torch.nan)
    y = main(ID, config, weights, x, {"memory": poisoned, "hidden": hidden, "key_hidden": key_hidden, "lengths": lengths,
                                      "memory_lengths": memory_lengths})
    torch.testing.assert_close(y, expected)
    if not config.get("out_bias"):
        assert (y[0, 2] == 0).all(), "a query that sees no key brings nothing"


def test_causal_with_a_memory_aligns_each_row_at_its_own_last_key():
    config = {"width": 12, "heads": 4, "causal": True}
    weights, x, memory = weights_of(ID, config), tokens(config, B, M), memory_of(config)
    lengths, memory_lengths = torch.tensor([M, 3, 5]), torch.tensor([N, 4, 5])
    y = main(ID, config, weights, x, {"memory": memory, "lengths": lengths, "memory_lengths": memory_lengths})
    for row, (m, n) in enumerate(zip(lengths, memory_lengths)):
        alone = main(ID, config, weights, x[row:row + 1, :m], {"memory": memory[row:row + 1, :n]})
        torch.testing.assert_close(y[row, :m], alone[0])


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_equals_multi_head_attention_with_tiled_keys(kv_heads):
    """softmax-attention with the key and value rows repeated; its gradients sum over a group."""
    config = {"width": 12, "heads": 6, "kv_heads": kv_heads, "kv_bias": True}
    weights, x = [t.requires_grad_() for t in weights_of(ID, config)], tokens(config, B, M)
    w = named(ID, config, weights)

    def tiled(t):
        return t.unflatten(0, (kv_heads, -1)).repeat_interleave(6 // kv_heads, 0).flatten(0, 1)

    rows = torch.cat([w["wq.weight"], tiled(w["wk.weight"]), tiled(w["wv.weight"])])
    bias = torch.cat([torch.zeros(12, dtype=torch.float64), tiled(w["wk.bias"]), tiled(w["wv.bias"])])
    expected = main("softmax-attention", {"width": 12, "heads": 6, "out_bias": False}, [rows, bias, w["wo.weight"]], x)
    agree(main(ID, config, weights, x), expected, weights)


def test_permuting_heads_inside_a_group_changes_nothing():
    config = {"width": 12, "heads": 6, "kv_heads": 2}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    w, order = named(ID, config, weights), [2, 0, 1, 4, 5, 3]
    q = w["wq.weight"].unflatten(0, (6, -1))[order].flatten(0, 1)
    o = w["wo.weight"].unflatten(1, (6, -1))[:, order].flatten(1)
    torch.testing.assert_close(main(ID, config, [q, *weights[1:3], o], x), main(ID, config, weights, x))


@pytest.mark.parametrize("path", ["fused", "stripe", "composite"])
def test_paths_never_repeat_keys(path, paths_of):
    config = {"width": 12, "heads": 6, "kv_heads": 2, "causal": True}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    counts, y = paths_of(lambda: main(ID, config, weights, x, path=path))
    assert counts["attention"] == {path: 1}
    torch.testing.assert_close(y, written_out(config, weights, x, causal_offset=0)[0])


def test_gradcheck():
    config = {"width": 6, "heads": 2, "causal": True}
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 4), *weights_of(ID, config))


@pytest.mark.parametrize("cuts", [[1] * 7, [3, 1, 3], [6, 1]])
def test_a_decode_in_chunks_equals_one_shot(cuts):
    module = regard.create(ID, width=12, heads=4, kv_heads=2, causal=True, dtype=torch.float64)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(decoded(module, x, cuts), module(x))
    _, cache = module.decode(x)
    assert cache["k"].shape == (2, 2, 7, 3), "the cache holds key heads, not query heads"


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_apart(causal):
    module = regard.create(ID, width=12, heads=4, causal=causal, dtype=torch.float64)
    x, bounds = torch.randn(1, 9, 12, dtype=torch.float64), [0, 4, 4, 9]
    alone = [module(x[:, a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    torch.testing.assert_close(module(x, cu_seqlens=torch.tensor(bounds)), torch.cat(alone, 1))


def test_dropout_replays_from_its_seed_and_scales():
    module = regard.create(ID, width=12, heads=4, attn_drop=0.5, dtype=torch.float64)
    x, seed = torch.randn(2, 7, 12, dtype=torch.float64), torch.tensor(3)
    assert torch.equal(module(x, seed=seed), module(x, seed=seed))
    assert not torch.equal(module(x, seed=seed), module(x, seed=torch.tensor(4)))
    assert torch.equal(module.eval()(x), module(x))


# ---- the conversion ----------------------------------------------------------------------------------------------


def test_mean_pooling_of_identical_heads_is_exact():
    grouped = regard.nn.MultiQuery(width=12, heads=6, kv_heads=2, kv_bias=True, dtype=torch.float64)
    state = {name: t.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1) if name[:2] in ("wk", "wv") else t
             for name, t in grouped.state_dict().items()}
    full = regard.nn.MultiQuery(width=12, heads=6, kv_heads=6, kv_bias=True, dtype=torch.float64)
    full.load_state_dict(state)
    back = regard.group_heads(full, 2)
    assert back.config == grouped.config
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(back(x), full(x))
    for name, tensor in grouped.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor)


def test_mean_pooling_averages_each_group():
    weight = torch.randn(8, 5)  # 4 heads of width 2
    pooled = torch.ops.regard.mean_pool_heads(weight, 4, 2)
    torch.testing.assert_close(pooled, torch.cat([(weight[:2] + weight[2:4]) / 2, (weight[4:6] + weight[6:]) / 2]))
    torch.testing.assert_close(torch.ops.regard.mean_pool_heads(weight[:, 0], 4, 1), pooled[:, 0].view(2, 2).mean(0))


@pytest.mark.parametrize("kdim", [None, 5])
def test_torchs_module_as_multi_query(kdim):
    theirs = torch.nn.MultiheadAttention(12, 3, kdim=kdim, vdim=kdim, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(theirs.in_proj_bias)
    x, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 4, kdim or 12, dtype=torch.float64)
    expected, _ = theirs(x, memory, memory)
    torch.testing.assert_close(regard.group_heads(theirs, 3)(x, memory=memory), expected)
    assert regard.group_heads(theirs, 1).config["kv_heads"] == 1


def test_bad_conversions():
    module = regard.nn.MultiQuery(width=12, heads=6, kv_heads=6)
    for bad, message in [((module, 4), "expected kv_heads to be a divisor of the 6 key heads; found 4"),
                         ((module, 2.0), "expected kv_heads to be an integer; found float"),
                         ((torch.nn.Linear(2, 2), 1), "MultiheadAttention; found Linear")]:
        with pytest.raises(ValueError, match=message):
            regard.group_heads(*bad)
    with pytest.raises(ValueError,
                       match=r"\[mean_pool_heads\] expected heads to be a multiple of kv_heads; found 4, kv_heads 3"):
        torch.ops.regard.mean_pool_heads(torch.randn(8, 2), 4, 3)
    with pytest.raises(ValueError,
                       match=r"\[mean_pool_heads\] expected a weight \(H Dh, ...\) of a floating type, H = 3"):
        torch.ops.regard.mean_pool_heads(torch.randn(8, 2), 3, 1)


def test_weights_have_the_official_names():
    assert list(named(ID, {"width": 8, "q_bias": True, "kv_bias": True, "out_bias": True}, range(8))) == [
        "wq.weight", "wq.bias", "wk.weight", "wk.bias", "wv.weight", "wv.bias", "wo.weight", "wo.bias"]


def test_bad_input():
    refuses("[multi-query] expected heads to be a multiple of kv_heads; found heads 8, kv_heads 3", ID,
            {"width": 8, "kv_heads": 3})
    refuses("[multi-query] expected kv_heads >= 1; found 0", ID, {"width": 8, "kv_heads": 0})
    refuses("[multi-query] expected width to be a multiple of heads, or head_width given; found width 8, heads 3", ID,
            {"width": 8, "heads": 3})
    refuses("[multi-query] expected alignment 'bottom_right' or 'top_left'; found 'left'", ID, {"width": 8, "alignment": "left"})
    refuses("[multi-query] expected 0 <= attn_drop < 1; found 1.000000", ID, {"width": 8, "attn_drop": 1.0})
    refuses("[multi-query] expected input memory (B, N, 5), since memory_width is not width; found none", ID,
            {"width": 8, "memory_width": 5})
    refuses("[multi-query] expected memory (B, N, 8) with the batch of x (2, 6, 8) float32; found (3, 4, 8) float32", ID,
            inputs={"memory": torch.randn(3, 4, 8)})
    refuses("[multi-query] expected memory with memory_lengths; found memory_lengths alone", ID,
            inputs={"memory_lengths": torch.tensor([3, 3])})
    refuses("[multi-query] expected key_hidden (B, N) bool (true = not attended) for keys of (2, 6, 8) float32; found "
            "(2, 5) bool", ID, inputs={"key_hidden": torch.zeros(2, 5, dtype=torch.bool)})
    refuses("[multi-query] expected hidden to broadcast to (B, H, M, N) = (2, 8, 6, 6); found (6, 5) bool", ID,
            inputs={"hidden": torch.zeros(6, 5, dtype=torch.bool)})
    refuses("[multi-query] expected hidden of type bool (true = not attended); found (6, 6) float32", ID,
            inputs={"hidden": torch.zeros(6, 6)})
