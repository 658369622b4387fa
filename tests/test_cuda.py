"""What only a GPU can show: which kernel serves, streams, captured graphs, several devices."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import pyops

f = pyops.functional
ours = torch.cuda.is_available() and pyops._C.build_info()["cuda"]
pytestmark = pytest.mark.skipif(not ours, reason="no CUDA device, or built without CUDA kernels")

NHWC = torch.channels_last


# Of each kernel: a call that it serves, as the shape and the memory format of its input.
CALLS = {
    "max_pool2d_forward_strips_cuda": ("pool", (2, 16, 33, 35), torch.contiguous_format),
    "max_pool2d_forward_channels_cuda": ("pool", (2, 16, 33, 35), NHWC),
    "max_pool2d_forward_cuda": ("odd pool", (2, 16, 33, 35), torch.contiguous_format),
    "linear_forward_cuda": ("linear", (37, 65), torch.contiguous_format),
    "conv2d_forward_cuda": ("conv", (2, 16, 13, 15), torch.contiguous_format),
    "conv2d_forward_depthwise_cuda": ("depthwise", (2, 16, 13, 15), NHWC),
    "conv2d_forward_tensorop_cuda": ("conv", (2, 16, 13, 15), NHWC),
}


def call(library, kind, x):
    if kind == "pool":
        return library.max_pool2d(x, 3, stride=2, padding=1)
    if kind == "odd pool":
        return library.max_pool2d(x, (5, 3), stride=3, padding=1)
    if kind in ("conv", "depthwise"):
        sizes, groups = ((24, 16, 3, 3), 1) if kind == "conv" else ((16, 1, 3, 3), 16)
        numbers = torch.arange(float(math.prod(sizes)), device=x.device)
        weight = numbers.remainder(3).sub(1).view(sizes).to(x)
        return library.conv2d(x, weight, padding=1, stride=2, groups=groups)
    weight = torch.arange(65.0 * 9, device=x.device).remainder(5).view(9, 65).to(x)
    return library.linear(x, weight)


@pytest.fixture(params=CALLS)
def example(request):
    """The kernel, the call by us and by native, and a draw of its input in small integers."""
    kind, shape, format = CALLS[request.param]

    def draw():
        x = torch.randint(-4, 5, shape, device="cuda").to(torch.bfloat16)
        return x.to(memory_format=format) if len(shape) == 4 else x

    return request.param, partial(call, f, kind), partial(call, F, kind), draw


def test_the_best_row_serves(example):
    kernel, mine, native, draw = example
    x = draw()
    with pyops.explain() as log:
        y = mine(x)
    assert [c.kernel for c in log.calls] == [kernel]
    assert torch.equal(y, native(x.double()).to(y))


def test_on_another_stream(example):
    _, mine, native, draw = example
    x = draw()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = mine(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, native(x.double()).to(y))


def test_a_captured_graph_replays(example):
    _, mine, native, draw = example
    x = draw()
    mine(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = mine(x)
    x.copy_(draw())
    graph.replay()
    assert torch.equal(y, native(x.double()).to(y))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_a_device_that_is_not_current(example):
    _, mine, native, draw = example
    x = draw().to("cuda:1")
    assert torch.equal(mine(x), native(x.double()).to(x))


def test_half_precision_linear_runs_on_tensor_cores():
    """Small integers: exact in every order, so that a wrong tile, bias or mask shows."""
    x, w, b, grad = (
        torch.randint(-2, 3, shape, device="cuda").bfloat16().requires_grad_()
        for shape in ((200, 72), (136, 72), (136,), (200, 136))
    )
    hopper = torch.cuda.get_device_capability() == (9, 0)
    with pyops.explain() as log:
        y = f.linear_relu(x, w, b)
        gradients = torch.autograd.grad(y, (x, w, b), grad)
    forward = "linear_forward_sm90" if hopper else "linear_forward_tensorop_cuda"
    assert [c.kernel for c in log.calls] == [forward, "linear_backward_tensorop_cuda"]
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.relu(F.linear(*wide))
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(
        gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True
    ):
        assert torch.equal(mine, right.to(mine))


# Of each kernel of the backward: the sizes of x and of the weight, and the call's options.
CONVOLUTIONS = {
    "conv2d_backward_cuda": ((3, 6, 11, 13), (10, 3, 3, 2), {"stride": 2, "groups": 2}),
    "conv2d_backward_depthwise_cuda": ((3, 6, 11, 13), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "conv2d_backward_tensorop_cuda": ((3, 24, 21, 19), (136, 24, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize(
    ("kernel", "stride"), itertools.product(CONVOLUTIONS, ((1, 1), (2, 2), (1, 3))), ids=str
)
def test_convolutions_are_exact(kernel, stride):
    """Small integers: exact in every order, so that a wrong tile, phase, bias or mask shows."""
    sizes, filters, options = CONVOLUTIONS[kernel]
    options = {**options, "stride": stride}
    x, w, b = (
        torch.randint(-1, 2, shape, device="cuda").bfloat16()
        for shape in (sizes, filters, filters[:1])
    )
    x, w = (t.to(memory_format=NHWC) for t in (x, w))
    inputs = [t.requires_grad_() for t in (x, w, b)]
    with pyops.explain() as log:
        y = f.conv2d_relu(*inputs, **options)
        grad = torch.randint(-1, 2, y.shape, device="cuda").to(y)
        gradients = torch.autograd.grad(y, inputs, grad)
    assert [c.kernel for c in log.calls] == [kernel.replace("backward", "forward"), kernel]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.relu(F.conv2d(*wide, **options))
    assert torch.equal(y, expected.to(y))
    rights = torch.autograd.grad(expected, wide, grad.double())
    for mine, right in zip(gradients, rights, strict=True):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize(
    ("kernel", "channels", "window"),
    [
        ("conv2d_pool_forward_tensorop_cuda", 16, 3),
        ("conv2d_pool_forward_fused_cuda", 3, 2),
        ("conv2d_pool_forward_cuda", 3, 3),
    ],
)
def test_pooled_convolutions_are_exact(kernel, channels, window):
    x, w = (
        torch.randint(-1, 2, shape, device="cuda")
        .bfloat16()
        .to(memory_format=NHWC)
        .requires_grad_()
        for shape in ((2, channels, 17, 19), (24, channels, 3, 3))
    )
    with pyops.explain() as log:
        y = f.conv2d_relu_max_pool2d(x, w, kernel_size=window, pool_stride=2)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    assert [c.kernel for c in log.calls][:2] == [kernel, "conv2d_pool_backward_cuda"]
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = F.max_pool2d(F.relu(F.conv2d(*wide)), window, 2)
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(gradients, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert torch.equal(mine, right.to(mine))
