"""States: absorb in parts, merge in any order, finish; several sources; a state in as well as out."""

import json

import executor_cases as cases
import pytest
import torch

import regard


def parts(name, t, cuts, **options):
    """The states of consecutive parts of the keys."""
    spec, captures = cases.spec_of(name, t)
    table = json.loads(spec)
    if table.get("normalizer", {}).get("sinks"):
        table["normalizer"]["sinks"] = False
    states = []
    for begin, end in zip(cuts, cuts[1:]):
        table.setdefault("positions", {})["key"] = {"offset": begin} if begin else {"offset": 0}
        part = regard.Spec.from_json(table, dict(zip(sorted(regard.Spec.from_json(spec).settings["captures"]),
                                                     captures)))
        states.append(regard.AttentionState().absorb(
            t["q"], t["k"][:, :, begin:end], t["v"][:, :, begin:end], spec=part, keys=t["k"].shape[2], **options))
    return states


def sinks_of(name, t):
    return t["sinks"] if "sinks" in name else None


@pytest.mark.parametrize("order", ["in order", "reversed", "tree"])
@pytest.mark.parametrize("name", cases.CASES)
def test_parts_are_the_whole(name, order):
    t = cases.tensors(5, 9)
    whole = cases.run("local", name, t)
    a, b, c, d = parts(name, t, [0, 1, 4, 4, 9])
    merged = {"in order": lambda: a.merge(b).merge(c).merge(d), "reversed": lambda: d.merge(c.merge(b)).merge(a),
              "tree": lambda: a.merge(d).merge(c.merge(b))}[order]()
    for part, expected in zip(merged.finish(sinks_of(name, t)), whole):
        assert cases.error(part, expected) < 1e-12


def test_sources_of_different_specs():
    """A window and pooled keys in one softmax are an attention over both with one mask."""
    t = cases.tensors(6, 10)
    near_k, near_v, far_k, far_v = t["k"][:, :, :6], t["v"][:, :, :6], t["k"][:, :, 6:], t["v"][:, :, 6:]
    state = regard.AttentionState()
    state = state.absorb(t["q"], near_k, near_v, mask=cases.causal)
    state = state.absorb(t["q"], far_k, far_v, score=lambda s, b, h, i, j: 2 * s)
    whole = regard.attention(t["q"], t["k"], t["v"], mask=lambda b, h, i, j: (j >= 6) | (i >= j),
                             score=lambda s, b, h, i, j: torch.where(j >= 6, 2 * s, s))
    assert cases.error(state.finish().o, whole) < 1e-12


def test_a_source_that_counts_beside_one_that_does_not():
    t = cases.tensors(6, 10)
    state = regard.AttentionState().absorb(t["q"], t["k"][:, :, :6], t["v"][:, :, :6], counted=cases.even)
    state = state.absorb(t["q"], t["k"][:, :, 6:], t["v"][:, :, 6:])
    whole = regard.attention(t["q"], t["k"], t["v"], counted=lambda b, h, i, j: (j >= 6) | (j % 2 == 0))
    assert cases.error(state.finish().o, whole) < 1e-12


def test_a_state_is_given_and_returned():
    """Decoding by blocks: each step absorbs only what is new."""
    t = cases.tensors(3, 9)
    state = regard.AttentionState()
    for begin in range(0, 9, 3):
        state = state.absorb(t["q"], t["k"][:, :, begin:begin + 3], t["v"][:, :, begin:begin + 3], mask=cases.window,
                             key_offset=begin)
    assert cases.error(state.finish().o, regard.attention(t["q"], t["k"], t["v"], mask=cases.window)) < 1e-12


def test_gradients_to_any_order():
    t = cases.tensors(3, 4)

    def f(q, k, v):
        state = regard.AttentionState().absorb(q, k[:, :, :2], v[:, :, :2])
        return state.absorb(q, k[:, :, 2:], v[:, :, 2:]).finish().o

    leaves = [t[name].requires_grad_() for name in "qkv"]
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


def test_empty_rows_are_zero_with_zero_gradients():
    t = cases.leaves(cases.tensors(4, 6))
    state = regard.AttentionState()
    for begin in (0, 3):
        state = state.absorb(t["q"], t["k"][:, :, begin:begin + 3], t["v"][:, :, begin:begin + 3],
                             mask=lambda b, h, i, j: i > j, key_offset=begin)
    o, lse, _ = state.finish()
    assert (o[:, :, 0] == 0).all() and torch.isneginf(lse[:, :, 0]).all()
    (o.sum() + lse[:, :, 1:].sum()).backward()
    assert (t["q"].grad[:, :, 0] == 0).all() and not any(torch.isnan(t[name].grad).any() for name in "qkv")


def test_variance_beside_a_large_mean():
    """Scores of mean 1e6 and deviation 1: power sums in float32 would lose every digit."""
    torch.manual_seed(1)
    noise = torch.randn(1, 1, 1, 64)
    v = torch.randn(1, 1, 64, 3)
    q, k = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 64, 1)
    table = (noise.flatten() + 1e4).float()
    spec = {"normalizer": {"kind": "z_score"}, "score": lambda s, b, h, i, j: s + table[j]}
    exact = (table.double() - table.double().mean()) / table.double().std(correction=0) @ v[0, 0].double()
    state = regard.AttentionState()
    for begin in range(0, 64, 16):
        state = state.absorb(q, k[:, :, begin:begin + 16], v[:, :, begin:begin + 16], key_offset=begin,
                             normalizer="z_score", score=spec["score"])
    assert cases.error(state.finish().o[0, 0, 0].double(), exact) < 2e-3


def test_entries_and_bytes_are_declared():
    t = cases.tensors(5, 9)
    for name in cases.CASES:
        (state,) = parts(name, t, [0, 9])
        spec, _ = cases.spec_of(name, t)
        if json.loads(spec).get("normalizer", {}).get("divisor") == "keys":
            continue  # with `keys` given the division stands in the score
        declared = json.loads(torch.ops.regard.state_entries(spec, cases.DV))
        assert {e["name"]: e["width"] for e in declared} == {
            key: x.shape[3] if x.dim() == 4 else 0 for key, x in state.entries.items()}
        assert torch.ops.regard.state_bytes(spec, cases.B, cases.H, 5, cases.DV, 8) == sum(
            x.numel() * 8 for x in state.entries.values())


def test_divisor_of_what_was_absorbed():
    t = cases.tensors(5, 9)
    relu = {"kind": "relu", "divisor": "keys"}
    state = regard.AttentionState()
    for begin in (0, 4):
        state = state.absorb(t["q"], t["k"][:, :, begin:begin + (4 if begin == 0 else 5)],
                             t["v"][:, :, begin:begin + (4 if begin == 0 else 5)], normalizer=relu)
    assert cases.error(state.finish().o, regard.attention(t["q"], t["k"], t["v"], normalizer=relu)) < 1e-12


def test_refusals():
    t = cases.tensors(3, 4)
    q, k, v = t["q"], t["k"], t["v"]
    soft, sum_ = (regard.AttentionState().absorb(q, k, v, normalizer=n) for n in ("softmax", "sum"))
    with pytest.raises(ValueError, match=r"\[merge\] expected states of one normalizer"):
        soft.merge(sum_)
    with pytest.raises(ValueError, match=r"\[finish\] expected a state into which something was absorbed; found none"):
        regard.AttentionState().finish()
    with pytest.raises(ValueError, match=r"\[absorb\] expected keys, the number of keys of all sources"):
        regard.AttentionState().absorb(q, k, v, score=cases.minus_log_keys)
    with pytest.raises(ValueError, match=r"\[merge\] expected states of one shape"):
        soft.merge(regard.AttentionState().absorb(q[:, :, :2], k, v))
    with pytest.raises(ValueError, match=r"\[merge\] expected an AttentionState; found int"):
        soft.merge(3)
