"""conv2d on integers: in every remainder of its tiles, to the last bit."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from pyops.functional import conv2d, conv2d_relu
from suite import isas

LAST = torch.channels_last
ON_GPU = [pytest.param(arch, marks=pytest.mark.cuda) for arch in ("sm_80", "sm_90")]


@pytest.mark.parametrize("place", [*isas(), *ON_GPU])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("hw", [(1, 1), (3, 33), (5, 7), (17, 16)])
@pytest.mark.parametrize(("c", "o"), [(1, 1), (3, 16), (16, 31), (33, 15)])
def test_tails(place, memory_format, hw, c, o):
    """Small integers, whose sums are exact, in every remainder of channels and positions."""
    assert_exact(place, memory_format, (3, c, *hw), (o, c, 3, 3), padding=1)


@pytest.mark.parametrize("place", [*isas("avx2"), *ON_GPU])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((3, 3, 62, 65), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
        ((2, 3, 16, 40), (10, 3, 3, 3), {"padding": 1}),
        ((2, 5, 12, 60), (13, 5, 3, 3), {"padding": 1}),
        ((2, 3, 20, 112), (20, 3, 5, 5), {"stride": 2, "padding": 2}),
        ((1, 40, 12, 48), (17, 40, 1, 3), {"padding": (0, 1)}),
        ((3, 20, 7, 7), (20, 1, 3, 3), {"padding": 1, "groups": 20}),
        ((2, 17, 9, 14), (17, 1, 3, 3), {"padding": 1, "groups": 17, "stride": 2}),
        ((2, 40, 6, 30), (40, 1, 5, 3), {"padding": (2, 0), "groups": 40}),
        ((5, 8, 16, 16), (33, 8, 3, 3), {"padding": 1}),
        ((2, 16, 40, 34), (24, 8, 3, 3), {"padding": 2, "groups": 2, "dilation": 2}),
        ((1, 64, 70, 66), (9, 64, 3, 3), {"padding": 1}),
        ((2, 9, 33, 48), (65, 9, 3, 5), {"stride": (1, 3)}),
        ((2, 64, 33, 37), (64, 32, 3, 2), {"padding": (1, 2), "groups": 2, "dilation": (2, 1)}),
        ((3, 32, 21, 34), (97, 32, 1, 1), {}),
        ((1, 96, 70, 66), (32, 96, 3, 3), {"padding": 1}),
        ((2, 64, 21, 30), (32, 64, 3, 3), {"padding": 1, "stride": (2, 3)}),
        ((2, 128, 9, 10), (40, 64, 1, 1), {"groups": 2}),
        ((3, 30, 21, 33), (70, 30, 1, 1), {}),
        ((2, 64, 28, 29), (42, 32, 1, 1), {"groups": 2}),
        ((3, 96, 7, 7), (72, 96, 3, 3), {"padding": 1}),
        ((2, 20, 12, 24), (48, 20, 3, 3), {"padding": 1}),
        ((2, 12, 40, 5), (32, 12, 3, 3), {"padding": (0, 7), "dilation": (1, 7)}),
        ((2, 20, 23, 19), (48, 20, 3, 3), {"padding": (2, 1), "dilation": (3, 2), "stride": 2}),
        ((2, 20, 14, 50), (1, 20, 3, 3), {"padding": 1}),
        ((3, 1, 13, 33), (2, 1, 5, 5), {"padding": 2}),
        ((2, 37, 12, 41), (3, 37, 3, 3), {"padding": (1, 0)}),
        ((2, 6, 22, 45), (35, 6, 5, 4), {"stride": (3, 2), "padding": (2, 1), "dilation": (2, 1)}),
        ((6, 40, 7, 7), (33, 40, 3, 3), {"padding": 1}),
        ((3, 40, 7, 5), (36, 40, 1, 1), {}),
        ((2, 33, 33, 30), (48, 33, 3, 3), {"padding": 1, "stride": 2}),
        ((2, 4, 40, 71), (4, 4, 7, 5), {"padding": (3, 2), "stride": 2}),
        ((2, 14, 20, 29), (10, 7, 3, 3), {"padding": 1, "groups": 2}),
        ((1, 2, 31, 64), (6, 2, 3, 3), {"padding": 1, "dilation": 2}),
        ((2, 130, 12, 16), (7, 130, 3, 3), {"padding": 1}),
        ((3, 40, 16, 13), (24, 40, 1, 1), {}),
        ((2, 33, 140, 1), (20, 33, 5, 1), {"padding": (2, 0), "stride": (2, 1)}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_grids(place, memory_format, x, w, options, dtype, relu):
    """The same for images large enough to be laid on a grid first."""
    assert_exact(place, memory_format, x, w, dtype, relu, **options)


def assert_exact(place, memory_format, x, w, dtype=torch.float32, relu=False, **options):
    """Integers, so that every order of summation ends in the same float, rounded once."""
    generator = torch.Generator().manual_seed(w[0] * w[1])
    device = "cuda" if place.startswith("sm_") else "cpu"

    def draw(shape):
        return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)

    tensors = [draw(s).contiguous(memory_format=memory_format) for s in (x, w)] + [draw(w[:1])]
    tensors = [t.requires_grad_() for t in tensors]
    with pyops.isa_cap(place):
        ours = (conv2d_relu if relu else conv2d)(*tensors, **options)
        grad = draw(ours.shape)
        gradients = torch.autograd.grad(ours, tensors, grad)
    wide = torch.float32 if device == "cpu" else torch.float64
    exact = [t.detach().to(wide).requires_grad_() for t in tensors]
    native = F.conv2d(*exact, **options)
    native = F.relu(native) if relu else native
    assert torch.equal(ours, native.to(dtype))
    for a, b in zip(gradients, torch.autograd.grad(native, exact, grad.to(wide)), strict=True):
        assert torch.equal(a, b.to(dtype))
