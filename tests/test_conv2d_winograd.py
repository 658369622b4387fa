"""3x3 convolutions in tiles of Winograd's minimal filtering, forward and both gradients."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from judging import judge
from pyops.functional import conv2d, conv2d_relu_max_pool2d
from suite import isas
from test_conv2d_exact import LAST, assert_exact

FORMATS = [torch.contiguous_format, LAST]


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((7, 16, 9, 11), (33, 16, 3, 3), {"padding": 1}),  # blocks of tiles of several images
        ((1, 16, 6, 230), (17, 16, 3, 3), {"padding": 1}),  # a line of more tiles than a block
        ((2, 171, 14, 13), (40, 171, 3, 3), {}),  # channels in several stretches
        ((3, 32, 10, 12), (64, 16, 3, 3), {"padding": (2, 1), "groups": 2}),
        ((1, 50, 33, 5), (130, 50, 3, 3), {"padding": 2}),
        ((7, 190, 11, 9), (200, 190, 3, 3), {"padding": 1}),  # sums of weights that threads share
    ],
)
def test_exact(place, memory_format, dtype, relu, x, w, options):
    assert_exact(place, memory_format, x, w, dtype, relu, **options)


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("x", "pool"),
    [
        ((5, 16, 8, 8), {}),  # halves of so few tiles that they alone would go another way
        ((5, 16, 17, 18), {"kernel_size": 3, "pool_stride": 2, "pool_padding": 1}),
        ((5, 32, 15, 15), {"kernel_size": 3, "pool_stride": 1}),
        ((5, 16, 20, 9), {"kernel_size": 2, "pool_stride": 5, "pool_dilation": 3}),
        ((5, 3, 14, 19), {"kernel_size": 3}),  # by the direct sum
    ],
)
def test_where_a_pooled_image_is_cut_changes_nothing(place, memory_format, x, pool):
    """Into strips for threads, the more the fewer images there are."""
    x = torch.randn(x).contiguous(memory_format=memory_format)
    w = torch.randn(24, x.size(1), 3, 3)
    with pyops.isa_cap(place):
        whole = conv2d_relu_max_pool2d(x, w, padding=1, **pool)
        torch.set_num_threads(4)
        try:
            cut = [conv2d_relu_max_pool2d(image, w, padding=1, **pool) for image in x]
        finally:
            torch.set_num_threads(1)
    assert torch.equal(torch.stack(cut), whole)


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("memory_format", FORMATS)
def test_shared_sums_of_weights_do_not_depend_on_the_threads(place, memory_format):
    x = torch.randn(7, 190, 11, 9).contiguous(memory_format=memory_format)
    w = torch.randn(200, 190, 3, 3, requires_grad=True)
    gradients = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            with pyops.isa_cap(place):
                gradients += torch.autograd.grad(conv2d(x, w, padding=1).square().sum(), w)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(*gradients)


@pytest.fixture(params=FORMATS, ids=str)
def layer(request):
    """Input, weight and gradient of a layer that is computed in tiles."""
    torch.manual_seed(0)
    shapes = (2, 16, 14, 15), (24, 16, 3, 3), (2, 24, 14, 15)
    return [torch.randn(s).contiguous(memory_format=request.param) for s in shapes]


def output_and_gradients(function, x, w, grad):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = function(x, w, padding=1)
    return (y.detach(), *torch.autograd.grad(y, (x, w), grad))


def judge_layer(place, *layer, of=lambda result: (result,)):
    """By the rule: output and both gradients, or the tensors that `of` takes from each."""

    def all_of(function):
        return lambda **layer: [t for r in output_and_gradients(function, **layer) for t in of(r)]

    with pyops.isa_cap(place):
        arguments = dict(zip(("x", "w", "grad"), layer, strict=True))
        judge(all_of(conv2d), all_of(F.conv2d), arguments, max_zeros=1.0)


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38], ids=str)
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_nonfinite(place, layer, value, where):
    """Infinities that the transforms would turn to NaN, and sums of theirs that overflow."""
    x, w, grad = layer
    (x if where == "input" else grad)[1, 3, 6, 6] = value

    def apart(result):
        """What the value meets would outweigh all else in the norms."""
        met = result.abs() > 1e30
        return result.where(met, 0), result.where(~met, 0)

    judge_layer(place, x, w, grad, of=apart)


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("exponent", [-135, -100, 60])
def test_range(place, layer, exponent):
    """Subnormal results lose no more than they have to."""
    x, w, grad = (t * 2.0**e for t, e in zip(layer, (exponent, 0, exponent), strict=True))
    judge_layer(place, x, w, grad)


@pytest.mark.parametrize("place", isas("avx2"))
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(2, 64, 28, 28), (4, 512, 7, 7)])
def test_error(place, memory_format, shape):
    """The rule of float32, where sums are long and native's own error is smallest."""
    torch.manual_seed(1)
    x, w, grad = (
        torch.randn(shape),
        torch.randn(32, shape[1], 3, 3),
        torch.randn(shape[0], 32, *shape[2:]),
    )
    judge_layer(place, *(t.contiguous(memory_format=memory_format) for t in (x, w, grad)))
