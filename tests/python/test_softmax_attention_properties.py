"""softmax-attention: the properties of attention, positions, refusals."""

import math

import torch
from mechanisms import call, main, named, refuses, weights_of
from reference_softmax_attention import ID, B, F, M, N, random_inputs, x_of

PLAIN = {"width": 12, "heads": 3}


def test_rows_sum_to_one_or_leave_the_sinks_their_share():
    x = x_of(PLAIN)
    for config, total in (({}, 1), ({"sinks": 2}, None), ({"normalizer": "softmax1"}, None)):
        config = {**PLAIN, **config}
        weights = weights_of(ID, config)
        attn, lse = call(ID, config, weights, x, outputs=["attn", "lse"])[1:]
        if total is None:
            sinks = named(ID, config, weights).get("sinks", torch.zeros(3, 1, dtype=torch.float64))
            total = 1 - (sinks[None, :, None] - lse[..., None]).exp().sum(-1)
        torch.testing.assert_close(attn.sum(-1), torch.as_tensor(total, dtype=torch.float64).expand(B, 3, M))


def test_sinks_of_zero_are_softmax1_and_of_minus_infinity_are_none():
    weights, x = weights_of(ID, PLAIN), x_of(PLAIN)
    zero = torch.zeros(3, dtype=torch.float64)
    with_sinks = {**PLAIN, "sinks": 1}
    torch.testing.assert_close(main(ID, with_sinks, [*weights, zero], x), main(ID, {**PLAIN, "normalizer": "softmax1"}, weights, x))
    torch.testing.assert_close(main(ID, with_sinks, [*weights, zero - 1e4], x), main(ID, PLAIN, weights, x))


def test_a_row_that_sees_nothing_is_zero_before_the_output_bias():
    weights = [w.requires_grad_() for w in weights_of(ID, PLAIN)]
    x = x_of(PLAIN).requires_grad_()
    hidden = torch.zeros(M, M, dtype=torch.bool)
    hidden[4] = True
    y, attn, lse = call(ID, PLAIN, weights, x, {"hidden": hidden}, outputs=["attn", "lse"])
    torch.testing.assert_close(y[:, 4], named(ID, PLAIN, weights)["out_proj.bias"].expand(B, 12))
    assert (attn[:, :, 4] == 0).all() and (lse[:, :, 4] == -math.inf).all()
    alone = torch.autograd.grad(y[:, 4].sum(), [x, weights[0]])
    assert all((g == 0).all() for g in alone)
    torch.testing.assert_close(y[:, :4], main(ID, PLAIN, weights, x)[:, :4])


def test_nan_in_hidden_keys_reaches_nothing():
    weights = [w.requires_grad_() for w in weights_of(ID, PLAIN)]
    x, inputs = x_of(PLAIN), random_inputs("memory")
    clean = main(ID, PLAIN, weights, x, {"memory": inputs["memory"][:, :6]})
    inputs["memory"][:, 6:] = torch.nan
    inputs["key_hidden"] = (torch.arange(N) >= 6).expand(B, N)
    y = main(ID, PLAIN, weights, x, inputs)
    torch.testing.assert_close(y, clean)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), weights))


def test_causal_outputs_do_not_change_with_the_future():
    config = {**PLAIN, "causal": True}
    weights, x = weights_of(ID, config, torch.float32), x_of(config).float()
    other = x.clone()
    other[:, 4:] = torch.randn_like(other[:, 4:])
    torch.testing.assert_close(main(ID, config, weights, other)[:, :4], main(ID, config, weights, x)[:, :4], rtol=1e-6, atol=1e-6)


def test_permutations_and_limits():
    weights, x, memory = weights_of(ID, PLAIN), x_of(PLAIN), random_inputs("memory")["memory"]
    y, order = main(ID, PLAIN, weights, x, {"memory": memory}), torch.randperm(N)
    torch.testing.assert_close(main(ID, PLAIN, weights, x, {"memory": memory[:, order]}), y)
    torch.testing.assert_close(main(ID, PLAIN, weights, x[:, [3, 1]], {"memory": memory}), y[:, [3, 1]])
    torch.testing.assert_close(main(ID, {**PLAIN, "softcap": 1e6}, weights, x, {"memory": memory}), y)
    one = memory[:, :1]
    torch.testing.assert_close(main(ID, PLAIN, weights, x, {"memory": one}),
                               main(ID, PLAIN, weights, x * 0, {"memory": one}))
    nothing = main(ID, PLAIN, weights, x, {"memory": memory[:, :0]})
    torch.testing.assert_close(nothing, named(ID, PLAIN, weights)["out_proj.bias"].expand_as(x))


def test_attention_dropout_drops_weights():
    config = {**PLAIN, "attn_drop": 0.5}
    weights, x = weights_of(ID, config), x_of(config)
    y, attn = call(ID, config, weights, x, outputs=["attn"], training=True, seed=torch.tensor(5))
    whole = call(ID, config, weights, x, outputs=["attn"])[1]
    kept = attn != 0
    torch.testing.assert_close(attn[kept], 2 * whole[kept])
    assert 0.35 < kept.double().mean() < 0.65
    w = named(ID, config, weights)
    v = F.linear(x, w["in_proj_weight"][24:], w["in_proj_bias"][24:]).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(
        F.linear((attn @ v).transpose(1, 2).flatten(2), w["out_proj.weight"], w["out_proj.bias"]), y)


def test_bad_configurations():
    def bad(text, **config):
        refuses(f"[softmax-attention] expected {text}", ID, {"width": 8, "heads": 2, **config})

    bad("width to be a multiple of heads, or head_width given; found width 8, heads 3", heads=3)
    bad("heads >= 1; found 0", heads=0)
    bad("heads to be a multiple of kv_heads; found heads 2, kv_heads 3", kv_heads=3)
    bad("kv_heads >= 0; found -1", kv_heads=-1)
    bad("an even rope_width, at most the head width 4; found 6", rope=True, rope_width=6)
    bad("an even rope_width, at most the head width 3; found 3", rope=True, head_width=3)
    bad("rope_theta > 0; found 0.000000", rope=True, rope_theta=0.0)
    bad("window_left >= -1; found -2", window_left=-2)
    bad("softcap >= 0; found -1.000000", softcap=-1.0)
    bad("norm_epsilon > 0; found 0.000000", norm_epsilon=0.0)
    bad("0 <= attn_drop < 1; found 1.000000", attn_drop=1.0)
    bad("0 <= proj_drop < 1; found -0.100000", proj_drop=-0.1)
    bad("normalizer among 'softmax', 'softmax1', 'sigmoid', 'relu', 'none'; found 'softmx'; did you mean 'softmax'?",
        normalizer="softmx")
    bad("alignment among 'bottom_right', 'top_left'; found 'top_lft'; did you mean 'top_left'?", alignment="top_lft")
    bad("sinks only with normalizer 'softmax'; found 'relu'", sinks=1, normalizer="relu")
    bad("sigmoid_bias only with normalizer 'sigmoid'; found 'softmax'", sigmoid_bias=0.0)
    bad("a divisor only with normalizer 'relu' or 'none'; found 'softmax'", divisor="keys")
    bad("divisor 'sqrt_keys' only with normalizer 'none'; found 'relu'", divisor="sqrt_keys", normalizer="relu")


def test_bad_inputs():
    x, config = torch.randn(2, 6, 8), {"width": 8, "heads": 2}
    memory = torch.randn(2, 5, 8)

    def bad(text, config=config, **inputs):
        refuses(f"[softmax-attention] expected {text}", ID, config, x, inputs=inputs)

    bad("memory (B, N, 8) with the batch of x (2, 6, 8) float32; found (2, 5, 7) float32", memory=memory[..., :7])
    bad("memory (B, N, 8) with the batch of x (2, 6, 8) float32; found (1, 5, 8) float32", memory=memory[:1])
    bad("input memory (B, N, 5), since memory_width is not width; found none", {**config, "memory_width": 5})
    bad("memory with memory_lengths; found memory_lengths alone", memory_lengths=torch.tensor([1, 2]))
    bad("key_hidden (B, N) bool (true = not attended) for keys of (2, 6, 8) float32; found (2, 5) bool",
        key_hidden=torch.zeros(2, 5, dtype=torch.bool))
    bad("hidden of type bool (true = not attended); found (6, 6) float32", hidden=torch.zeros(6, 6))
    bad("hidden to broadcast to (B, H, M, N) = (2, 2, 6, 6); found (5, 6) bool",
        hidden=torch.zeros(5, 6, dtype=torch.bool))
    bad("bias to broadcast to (B, H, M, N) = (2, 2, 6, 5); found (6, 6) float32", memory=memory, bias=torch.zeros(6, 6))
    bad("bias of a floating type; found (6, 6) int64", bias=torch.zeros(6, 6).long())
    bad("slopes (2,); found (3,) float32", slopes=torch.zeros(3))
    bad("segments (B, L), integer, L = 6; found (2, 5) int64", segments=torch.zeros(2, 5).long())
    bad("segments and memory_segments together; found segments alone", memory=memory, segments=torch.zeros(2, 6).long())
    bad("positions only with rope; found positions", positions=torch.arange(6))
    bad("positions (L) or (B, L), L = 6; found (5,) int64", {**config, "rope": True}, positions=torch.arange(5))
    bad("inputs among 'memory', 'lengths', 'memory_lengths', 'hidden', 'key_hidden', 'bias', 'slopes', 'segments', "
        "'memory_segments', 'positions', 'memory_positions'; found 'memry'; did you mean 'memory'?", memry=memory)
    bad("lengths in [0, 6]; found 9 in row 0", lengths=torch.tensor([9, 1]))
    bad("lengths in [0, 6]; found -1 in row 1", lengths=torch.tensor([6, -1], dtype=torch.int32))
    bad("lengths in [0, 6]; found 7 in row 1", lengths=torch.tensor([1, 0, 7])[::2])
    bad("memory_lengths in [0, 5]; found 6 in row 1", memory=memory, memory_lengths=torch.tensor([5, 6]))
    bad("memory_lengths (B), integer; found (2,) float32", memory=memory, memory_lengths=torch.ones(2))
    bad("memory_lengths of the 2 rows of x; found (3,) int64", memory=memory, memory_lengths=torch.ones(3).long())


def test_default_positions_of_rope_count_from_zero():
    """x and memory from 0 each, unless a causal mask, a window or ALiBi says where the queries lie."""
    config = {"width": 8, "heads": 2, "rope": True}
    weights, x = weights_of(ID, config), torch.randn(2, 3, 8, dtype=torch.float64)
    memory = torch.randn(2, 7, 8, dtype=torch.float64)

    def y(config, **inputs):
        return main(ID, config, weights, x, {"memory": memory, **inputs})

    given = {"positions": torch.arange(3), "memory_positions": torch.arange(7)}
    assert torch.equal(y(config), y(config, **given))
    for aligned in ({"causal": True}, {"window_left": 6}, {"window_right": 6}):
        assert torch.equal(y({**config, **aligned}), y({**config, **aligned}, positions=torch.arange(4, 7)))
        assert not torch.allclose(y({**config, **aligned}), y({**config, **aligned}, positions=torch.arange(3)))
