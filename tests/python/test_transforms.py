"""torch.func's transforms and autograd's checks of the op: every differentiable argument, every path."""

import pytest
import regard
import torch
from test_attention import close
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

PATHS = ["fused", "stripe", "composite"]
B, H, Hk, M, N, D = 1, 2, 1, 3, 4, 2


def inputs():
    """q, k, v, slopes (H), bias (M, N), qx, kx, sinks (H)."""
    shapes = ((B, H, M, D), (B, Hk, N, D), (B, Hk, N, 3), (H,), (M, N), (B, 1, M, 2), (B, 1, N, 2), (H,))
    return tuple(torch.randn(*shape, dtype=torch.float64) for shape in shapes)


NAMES = ("q", "k", "v", "slopes", "bias", "qx", "kx", "sinks")


def everything(path, lse=False):
    """attention as a function of all its differentiable arguments."""
    def f(q, k, v, slopes, bias, qx, kx, sinks):
        def score(s, b, h, i, j):
            return torch.tanh(s) * slopes[h] + bias[i, j] + 0.5 * regard.expr.dot("x")

        out = regard.attention(q, k, v, score=score, mask=lambda b, h, i, j: i + 1 >= j, operands={"x": (qx, kx)},
                               sinks=sinks, path=path, return_lse=True)
        return out if lse else out[0]

    return f


@pytest.mark.parametrize("path", PATHS)
class TestAutograd:
    def test_gradcheck(self, path):
        arguments = [x.requires_grad_() for x in inputs()]
        assert torch.autograd.gradcheck(everything(path, lse=True), arguments)

    def test_gradgradcheck(self, path):
        arguments = [x.requires_grad_() for x in inputs()]
        assert torch.autograd.gradgradcheck(everything(path, lse=True), arguments)

    def test_forward_mode(self, path):
        arguments = [x.requires_grad_() for x in inputs()]
        assert torch.autograd.gradcheck(everything(path, lse=True), arguments, check_forward_ad=True,
                                        check_backward_ad=False, check_batched_forward_grad=False)

    def test_rows_without_keys(self, path):
        q, k, v = (x.requires_grad_() for x in inputs()[:3])
        f = lambda q, k, v: regard.attention(q, k, v, mask=lambda b, h, i, j: i > j, path=path)  # noqa: E731
        assert torch.autograd.gradcheck(f, (q, k, v)) and torch.autograd.gradgradcheck(f, (q, k, v))


@pytest.mark.parametrize("path", PATHS)
class TestFunc:
    def test_grad(self, path):
        arguments = inputs()
        f = lambda *a: everything(path)(*a).square().sum()  # noqa: E731
        actual = grad(f, argnums=tuple(range(len(arguments))))(*arguments)
        leaves = [x.clone().requires_grad_() for x in arguments]
        for a, e in zip(actual, torch.autograd.grad(f(*leaves), leaves)):
            close(a, e)

    def test_vjp_and_jvp_agree(self, path):
        """<u, J t> = <J^T u, t>."""
        arguments = inputs()
        tangents = tuple(torch.randn_like(x) for x in arguments)
        o, pull = vjp(everything(path), *arguments)
        u = torch.randn_like(o)
        o2, tangent = jvp(everything(path), arguments, tangents)
        close(o2, o)
        pushed = sum((g * t).sum() for g, t in zip(pull(u), tangents))
        close((u * tangent).sum(), pushed, 1e-10)

    def test_jacrev_is_jacfwd(self, path):
        arguments = inputs()
        for n in range(len(arguments)):
            close(jacfwd(everything(path), argnums=n)(*arguments), jacrev(everything(path), argnums=n)(*arguments), 1e-10)

    def test_second_derivatives(self, path):
        """jacrev of jacrev = jacfwd of grad, and symmetric."""
        arguments = inputs()
        f = lambda *a: everything(path)(*a).square().sum()  # noqa: E731
        for n in (0, 1, 3, 4):
            hessian = jacrev(jacrev(f, argnums=n), argnums=n)(*arguments)
            size = arguments[n].numel()
            close(hessian.reshape(size, size), hessian.reshape(size, size).T, 1e-10)
            close(jacfwd(grad(f, argnums=n), argnums=n)(*arguments), hessian, 1e-10)

    def test_jvp_of_grad(self, path):
        arguments = inputs()
        f = lambda q: everything(path)(q, *arguments[1:]).square().sum()  # noqa: E731
        direction = torch.randn_like(arguments[0])
        _, product = jvp(grad(f), (arguments[0],), (direction,))
        hessian = jacrev(jacrev(f))(arguments[0])
        close(product, torch.einsum("abcdefgh,efgh->abcd", hessian, direction), 1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_one_argument(name, path):
    arguments = inputs()
    n = NAMES.index(name)
    many = torch.randn(3, *arguments[n].shape, dtype=torch.float64)
    f = everything(path, lse=True)
    axes = tuple(0 if m == n else None for m in range(len(arguments)))
    o, lse = vmap(f, in_dims=axes)(*arguments[:n], many, *arguments[n + 1:])
    for index in range(3):
        expected_o, expected_lse = f(*arguments[:n], many[index], *arguments[n + 1:])
        close(o[index], expected_o)
        close(lse[index], expected_lse)


@pytest.mark.parametrize("path", PATHS)
def test_vmap_over_all_and_other_axes(path):
    stacks = [inputs() for _ in range(3)]
    axes = (0, 1, 2, 0, 1, 0, -1, 0)
    arguments = [torch.stack([s[n] for s in stacks], dim=axis) for n, axis in enumerate(axes)]
    o = vmap(everything(path), in_dims=axes)(*arguments)
    for index in range(3):
        close(o[index], everything(path)(*stacks[index]))


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_samples(path):
    """vmap of grad, and of vmap."""
    stacks = [inputs() for _ in range(2)]
    arguments = [torch.stack(x) for x in zip(*stacks)]
    f = lambda *a: everything(path)(*a).square().sum()  # noqa: E731
    wanted = tuple(range(len(arguments)))
    actual = vmap(grad(f, argnums=wanted))(*arguments)
    for index, sample in enumerate(stacks):
        for a, e in zip(actual, grad(f, argnums=wanted)(*sample)):
            close(a[index], e)
    twice = [torch.stack([x, x]) for x in arguments]
    close(vmap(vmap(everything(path)))(*twice)[1], vmap(everything(path))(*arguments))


def test_vmap_over_an_integer_capture():
    q, k, v = inputs()[:3]
    documents = torch.randint(0, 2, (5, 1, N), dtype=torch.int32)
    f = lambda d: regard.attention(q, k, v, mask=lambda b, h, i, j: d[b, i] == d[b, j])  # noqa: E731
    o = vmap(f)(documents)
    for index in range(5):
        close(o[index], f(documents[index]))


def test_transforms_through_a_mechanism():
    module = regard.nn.SoftmaxAttention(width=4, heads=2, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    weights = dict(module.named_parameters())

    def f(weights, x):
        return torch.func.functional_call(module, weights, (x,)).square().sum()

    expected = torch.autograd.grad(f(weights, x), list(weights.values()))
    for a, e in zip(grad(f)(weights, x).values(), expected):
        close(a, e)
    samples = vmap(grad(f), in_dims=(None, 0))({n: w.detach() for n, w in weights.items()}, x[:, None])
    for a, e in zip(samples.values(), expected):
        close(a.sum(0), e, 1e-10)
    g = lambda x: torch.func.functional_call(module, weights, (x,)).sum()  # noqa: E731
    hessian = jacrev(jacrev(g))(x)
    close(hessian, jacfwd(grad(g))(x), 1e-10)


def test_batched_gradients():
    """torch.autograd.grad(is_grads_batched=True), which torch.autograd.functional's vectorized jacobians use."""
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)
    o = regard.attention(q, k, v, score=lambda s, b, h, i, j: s - slopes[h] * (i - j))
    cotangents = torch.randn(5, *o.shape, dtype=torch.float64)
    batched = torch.autograd.grad(o, (q, k, v, slopes), cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        single = torch.autograd.grad(o, (q, k, v, slopes), cotangent, retain_graph=True)
        for a, b in zip(batched, single):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda q: regard.attention(q, k, v).sum(), q, vectorize=True)
    plain = torch.autograd.functional.hessian(lambda q: regard.attention(q, k, v).sum(), q)
    torch.testing.assert_close(hessian, plain, rtol=1e-12, atol=1e-12)
