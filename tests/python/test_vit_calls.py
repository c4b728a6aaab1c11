"""Calls of the Vision Transformer host: compiled, refused, with and without random numbers."""

import json

import pytest
import torch
from vit_cases import SMALL, close, image, ops, random_weights, run

import regard

# ---- tracing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True, "global_pool": "map"},
                                     {"pool": "simpool", "mixer": "poolformer", "class_token": False}])
def test_compiles_whole_with_any_batch(options):
    config = SMALL | options
    weights = random_weights(config)

    text = json.dumps(config)

    def call(x, *tensors):
        return ops.mechanism("vit", text, list(tensors), x)[0]

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = image(config, batch=batch)
        close(compiled(x, *weights.values()), call(x, *weights.values()), 1e-12)


# ---- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, message", [
    ({"num_heads": 5}, r"\[vit\] expected embed_dim to be a multiple of num_heads 5; found 12"),
    ({"class_token": False}, "expected class_token true with global_pool 'token'; found class_token false"),
    ({"mixer": "poolformer"}, "with the mixer 'poolformer', which has no place for tokens outside the grid; found 1"),
    ({"mixer": "poolformer", "class_token": False, "reg_tokens": 2, "pool": "mean"}, "reg_tokens 0 .*found 2"),
    ({"pool": "class-token", "class_token": False}, "the pool 'class-token', which reads the class token"),
    ({"pool": "mean", "global_pool": "avg"}, "expected either pool or global_pool; found pool 'mean'"),
    ({"mixer": "softmax-atention"}, "did you mean 'softmax-attention'"),
    ({"mixer": "simpool"}, "expected mixer to name a mixer; found 'simpool', which is none"),
    ({"pool": "poolformer"}, "expected pool to name a pool"),
    ({"global_pool": "averge"}, "global_pool to be one of .*found 'averge'"),
    ({"patch_size": 16}, "expected img_size of at least patch_size 16x16; found 8x8"),
    ({"img_size": [1, 2, 3]}, "img_size to be one size or two"),
    ({"drop_rate": 1.0}, r"drop_rate in \[0, 1\)"),
    ({"distilled": True, "global_pool": "avg"}, "global_pool 'token' with distilled"),
    ({"img_size": 10, "dynamic_img_pad": True}, "dynamic_img_size true with dynamic_img_pad"),
    ({"out_indices": [2]}, r"out_indices in \[-depth, depth\); found 2"),
    ({"weight_init": "jaxx"}, "weight_init to be one of"),
    ({"mixer_config": {"widht": 3}}, "widht"),
    ({"pool_config": {"gamma": 2.0}}, "pool_config only with pool"),
    ({"embed": 3}, "'embed'"),
])
def test_configurations_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ops.declare("vit", json.dumps(SMALL | options))


@pytest.mark.parametrize("options, size, message", [
    ({}, (8, 12), r"\[vit\] expected an image of 8x8 \(or dynamic_img_size true\); found 8x12"),
    ({"dynamic_img_size": True}, (8, 10), r"patches of 4x4 divide \(or dynamic_img_pad true\); found 8x10"),
])
def test_images_refused(options, size, message):
    config = SMALL | options
    with pytest.raises(ValueError, match=message):
        run(config, random_weights(config), image(config, size=size))


def test_calls_refused():
    weights = random_weights(SMALL)
    for x in (torch.zeros(2, 2, 8, dtype=torch.float64), torch.zeros(2, 3, 8, 8, dtype=torch.float64),
              torch.zeros(2, 2, 8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\[vit\] expected an image \(B, 2, H, W\)"):
            run(SMALL, weights, x)
    with pytest.raises(ValueError, match="'head' and 'head_dist'"):
        run(SMALL, weights, image(SMALL), ["head"])
    with pytest.raises(ValueError, match="vit_base"):
        ops.vit_preset("vit_bas")
    with pytest.raises(ValueError, match="old_grid"):
        ops.resize_positions(torch.zeros(1, 7, 2), [], [2, 2], 0)
    with pytest.raises(ValueError, match="new_grid to be two sizes"):
        ops.resize_positions(torch.zeros(1, 4, 2), [], [2, 0], 0)


@pytest.mark.parametrize("changes", [{}, {"pool": "simpool"}, {"mixer": "poolformer", "class_token": False,
                                                               "global_pool": "avg"}], ids=str)
def test_training_without_drops_draws_nothing(changes):
    """torch's generator stays where it is, so that per-sample gradients work: vmap refuses random numbers."""
    model = regard.models.ViT(**{**SMALL, **changes}).train()
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 2, 8, 8)

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x[None],)).square().sum()

    before = torch.get_rng_state()
    single = torch.func.grad(loss)(parameters, x[1])
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    assert torch.equal(torch.get_rng_state(), before)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient[1], single[name], rtol=1e-3, atol=1e-4)
    assert sum(gradient.abs().sum() for gradient in found.values()) > 0


def test_training_with_drops_draws():
    """Each mixer replays its own stream: a seed decides everything."""
    model = regard.models.ViT(**SMALL, attn_drop_rate=0.5, proj_drop_rate=0.3).train()
    x = torch.randn(3, 2, 8, 8)
    before = torch.get_rng_state()
    assert not torch.equal(model(x), model(x))
    assert not torch.equal(torch.get_rng_state(), before)
    first, again = (model(x, seed=torch.tensor(7)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, model(x, seed=torch.tensor(8)))


def test_mixers_are_as_wide_as_the_host():
    with pytest.raises(ValueError,
                       match=r"\[vit\] expected mixer_config without width, or with embed_dim 12; found 99"):
        regard.models.ViT(**SMALL, mixer_config={"width": 99})
    regard.models.ViT(**SMALL, mixer_config={"width": 12})
