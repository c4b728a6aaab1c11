"""What a call of a mechanism brings: positions, caches, packed sequences, executors; errors by message."""

import pytest
import regard
import torch

CAUSAL = {"width": 16, "heads": 2, "causal": True, "dtype": torch.float64}


@pytest.fixture
def module():
    return regard.nn.SoftmaxAttention(**CAUSAL, rope=True, kv_heads=1)


@pytest.fixture
def x():
    return torch.randn(2, 9, 16, dtype=torch.float64)


@pytest.mark.parametrize("cuts", [[1] * 9, [4, 5], [8, 1], [2, 3, 4], [9], [0, 9]])
def test_chunks_of_a_decode_give_the_whole(module, x, cuts):
    cache, steps = None, []
    for chunk in x.split(cuts, 1):
        y, cache = module.decode(chunk, cache)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, 1), module(x))
    assert cache["k"].shape == (2, 1, 9, 8)
    assert [stream["name"] for stream in module.caches] == ["k", "v"]


def test_a_cache_is_plain_tensors_and_an_older_one_starts_again(module, x):
    _, cache = module.decode(x[:, :5])
    again, _ = module.decode(x[:, 5:], {name: t.clone() for name, t in cache.items()})
    first, _ = module.decode(x[:, 5:], cache)
    assert torch.equal(first, again)
    y, _, found = module.decode(x[:, 5:], cache, outputs=["lse", "tap.mass:0"])
    assert found["lse"].shape == (2, 2, 4) and set(found) == {"lse", "tap.mass:0"}


def test_gradients_pass_through_a_cache(module, x):
    whole = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    y, cache = module.decode(x[:, :5])
    z, _ = module.decode(x[:, 5:], cache)
    parts = torch.autograd.grad(y.square().sum() + z.square().sum(), list(module.parameters()))
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b)


def test_positions_are_given_or_counted(module, x):
    torch.testing.assert_close(module(x, positions=torch.arange(9)), module(x))
    torch.testing.assert_close(module(x, positions=torch.arange(7, 16)), module(x))  # rotations are relative
    assert not torch.allclose(module(x, positions=2 * torch.arange(9)), module(x))


def test_packed_is_separate(module, x):
    row = x[:1]
    packed = module(row, cu_seqlens=torch.tensor([0, 2, 2, 9]))
    torch.testing.assert_close(packed, torch.cat([module(row[:, :2]), module(row[:, 2:])], 1))


def test_executors(module, x):
    whole = module(x)
    for executor in ("local", *(f"split:{n}" for n in (2, 3))):
        if executor.split(":")[0] in known_executors():
            torch.testing.assert_close(module(x, executor=executor), whole)


def known_executors():
    try:
        regard.nn.SoftmaxAttention(**CAUSAL)(torch.zeros(1, 1, 16, dtype=torch.float64), executor="none")
    except ValueError as error:
        return str(error)
    raise AssertionError("an unknown executor ran")


K, V = torch.zeros(2, 1, 3, 8, dtype=torch.float64), torch.zeros(2, 1, 3, 8, dtype=torch.float64)


@pytest.mark.parametrize("call, message", [
    ({"executor": "splt:3"}, r"\[executor\] expected one of 'local'.*; found 'splt'"),
    ({"positions": torch.arange(4)}, r"\[softmax-attention\] expected positions \(L\) or \(B, L\), L = 9; found \(4,\) int64"),
    ({"cu_seqlens": torch.tensor([0, 9])}, r"expected x of one row, \(1, T, D\), with cu_seqlens; found 2 rows"),
    ({"cu_seqlens": torch.tensor([0., 9.])}, r"expected cu_seqlens \(S \+ 1\), integer; found Float of shape \(2\)"),
    ({"cu_seqlens": torch.tensor([0, 8])}, r"expected cu_seqlens that ends with the 9 tokens; found 8"),
    ({"cu_seqlens": torch.tensor([2, 9])}, r"expected cu_seqlens that begins with 0; found 2"),
    ({"cache.k": K}, r"expected all streams of the cache, 'cache.k', 'cache.v'; found 1 of them"),
    ({"cache.k": K, "cache.v": V[..., :5]}, r"expected cache.v \(B, 1, tokens, 8\); found \(2, 1, 3, 5\) float64"),
    ({"cache.k": K.float(), "cache.v": V}, r"expected cache.k of type float64; found \(2, 1, 3, 8\) float32"),
    ({"cache.kk": K}, r"expected streams among 'cache.k', 'cache.v'; found 'cache.kk'; did you mean 'cache.k'\?"),
    ({"cache.k": K, "cache.v": V, "lengths": torch.tensor([9, 9])}, r"expected a cache or lengths; found both"),
    ({"lenghts": torch.tensor([9, 9])}, r"expected inputs among .*; found 'lenghts'; did you mean 'lengths'\?"),
])
def test_errors_of_a_call(module, x, call, message):
    with pytest.raises(ValueError, match=message):
        module(x, **call)


@pytest.mark.parametrize("beside", ["lengths", "positions"])
def test_packed_sequences_say_lengths_and_positions(module, x, beside):
    with pytest.raises(ValueError, match=rf"expected no lengths or positions beside cu_seqlens.*; found {beside}"):
        module(x[:1], cu_seqlens=torch.tensor([0, 9]), **{beside: torch.tensor([9])})


def test_a_packed_decode_is_refused(module, x):
    with pytest.raises(ValueError, match=r"expected a cache or packed sequences; found both"):
        module(x[:1], cu_seqlens=torch.tensor([0, 9]), outputs=["cache.k", "cache.v"])


def test_mechanisms_that_cannot_say_so(x):
    whole = regard.nn.SoftmaxAttention(width=16, heads=2, dtype=torch.float64)
    with pytest.raises(ValueError,
                       match=r"\[softmax-attention\] expected a configuration that decodes step by step; found one"):
        whole.decode(x)
    with pytest.raises(ValueError,
                       match=r"expected no cache: this configuration keeps nothing between steps; found 'cache.k'"):
        whole(x, outputs="cache.k")
    with pytest.raises(ValueError, match=r"\[poolformer\] expected a mechanism that runs on packed sequences"):
        regard.nn.PoolFormer(width=16, dtype=torch.float64)(x[:1], grid=(3, 3), cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match=r"\[softmax-attention\] expected cache to be a dict of tensors by stream"):
        regard.nn.SoftmaxAttention(**CAUSAL).decode(x, [K, V])


def test_a_host_of_images_refuses_what_it_cannot_do():
    model = regard.models.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    image = torch.randn(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\[vit\] expected .*(cu_seqlens|sequences that are not packed|a mixer)"):
        model(image, cu_seqlens=torch.tensor([0, 8]))
    with pytest.raises(ValueError, match=r"\[vit\] expected no cache"):
        model(image, outputs="cache.k")


def test_help_lists_what_a_call_takes():
    text = regard.nn.SoftmaxAttention.__doc__
    assert "significance" in text and "Publishes" in text and "cu_seqlens" in text
    assert "decode(x, cache)" in text and "k (append)" in text
    assert "no configuration keeps a cache" in regard.nn.SimPool.__doc__
    forward = regard.nn.SoftmaxAttention.forward.__doc__
    assert "tap.top_k:8" in forward and "edits" in forward and "executor" in forward
