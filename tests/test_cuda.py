"""What only a GPU can show: which kernel serves what, and that it is exact or close."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import pyops
from kernel_calls import runs
from pyops.numerics import compare

f = pyops.functional
pytestmark = pytest.mark.cuda

NHWC = torch.channels_last

HOPPER = "sm_90" in runs()
HALF_LINEAR = "linear_{}_sm90" if HOPPER else "linear_{}_tensorop_cuda"


@pytest.mark.parametrize(
    ("kernel", "dtype", "precision"),
    [
        (HALF_LINEAR, torch.bfloat16, "highest"),
        (HALF_LINEAR, torch.float16, "high"),
        ("linear_{}_tf32_cuda", torch.float32, "high"),
        ("linear_{}_3xtf32_cuda", torch.float32, "highest"),
    ],
    ids=str,
    indirect=["precision"],
)
@pytest.mark.parametrize("rows", [200, 3001])
def test_linear_runs_on_tensor_cores(rows, kernel, dtype, precision):
    """Small integers: exact in every order, so that a wrong tile, bias or mask shows."""
    x, w, b, grad = (
        torch.randint(-1, 2, shape, device="cuda").to(dtype).requires_grad_()
        for shape in ((rows, 72), (136, 72), (136,), (rows, 136))
    )
    with pyops.explain() as log:
        y = f.linear_relu(x, w, b)
        gradients = torch.autograd.grad(y, (x, w, b), grad)
    assert [c.kernel for c in log.calls] == [kernel.format("forward"), kernel.format("backward")]
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.relu(F.linear(*wide))
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(
        gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True
    ):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize("depth", [72, 1024, 16384])
@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**57])
def test_float32_on_tensor_cores_is_float32(depth, scale):
    """The rule for "highest"; a row of infinities, of NaN and of subnormals as native has it."""
    torch.manual_seed(0)
    x, w = (torch.randn(s, depth, device="cuda") * scale for s in (200, 136))
    x[3, 5], x[4, 6], x[5] = math.inf, math.nan, x[5] * 2.0**-60
    with pyops.explain() as log:
        y = f.linear(x, w)
    assert [c.kernel for c in log.calls] == ["linear_forward_3xtf32_cuda"]
    native = F.linear(x, w)
    verdict = compare(y, native, F.linear(x.double(), w.double()), terms=depth)
    assert verdict.passed, verdict.reason
    # Beside the others the small row would not count; what cancels is as wrong as the largest.
    noise = 1e-5 * native[5].abs().max().item()
    torch.testing.assert_close(y[5], native[5], rtol=0, atol=noise)


# Of each kernel of the backward: the sizes of x and of the weight, and the call's options.
CONVOLUTIONS = [
    ("conv2d_backward_cuda", (3, 6, 11, 13), (10, 3, 3, 2), {"groups": 2}),
    ("conv2d_backward_depthwise_cuda", (3, 6, 11, 13), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ("conv2d_backward_tensorop_cuda", (3, 24, 21, 19), (136, 24, 3, 3), {"padding": 1}),
    ("conv2d_backward_tf32_cuda", (3, 20, 21, 19), (132, 20, 3, 3), {"padding": 1}),
    ("conv2d_backward_3xtf32_cuda", (3, 20, 21, 19), (132, 20, 3, 3), {"padding": 1}),
    ("conv2d_backward_sm90", (3, 72, 21, 19), (136, 72, 3, 3), {"padding": 1}),
    ("conv2d_backward_sm90", (2, 40, 14, 15), (72, 40, 2, 5), {"padding": (1, 3)}),
    ("conv2d_backward_sm90", (3, 72, 21, 19), (136, 72, 1, 1), {}),
]


@pytest.mark.parametrize(
    ("kernel", "sizes", "filters", "options", "stride"),
    [(*c, stride) for c, stride in itertools.product(CONVOLUTIONS, ((1, 1), (2, 2), (1, 3)))],
    ids=str,
)
def test_convolutions_are_exact(kernel, sizes, filters, options, stride):
    """Small integers: exact in every order, so that a wrong tile, phase, bias or mask shows."""
    if "sm90" in kernel and not HOPPER:
        pytest.skip("no Hopper GPU")
    dtype = torch.float32 if "tf32" in kernel else torch.bfloat16
    x, w, b = (
        torch.randint(-1, 2, shape, device="cuda").to(dtype)
        for shape in (sizes, filters, filters[:1])
    )
    x, w = (t.to(memory_format=NHWC) for t in (x, w))
    inputs = [t.requires_grad_() for t in (x, w, b)]
    with torch.backends.cudnn.flags(allow_tf32="3xtf32" not in kernel), pyops.explain() as log:
        y = f.conv2d_relu(*inputs, stride=stride, **options)
        grad = torch.randint(-1, 2, y.shape, device="cuda").to(y)
        gradients = torch.autograd.grad(y, inputs, grad)
    assert [c.kernel for c in log.calls] == [kernel.replace("backward", "forward"), kernel]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.relu(F.conv2d(*wide, stride=stride, **options))
    assert torch.equal(y, expected.to(y))
    rights = torch.autograd.grad(expected, wide, grad.double())
    for mine, right in zip(gradients, rights, strict=True):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize(
    ("kernel", "channels", "outputs", "window"),
    [
        ("conv2d_pool_forward_tensorop_cuda", 16, 24, 3),
        ("conv2d_pool_forward_sm90", 40, 24, 3),
        # Weights that stay, of both depths, weights that come again, and two tiles of columns.
        ("conv2d_pool_forward_fused_sm90", 16, 24, 2),
        ("conv2d_pool_forward_fused_sm90", 40, 24, 2),
        ("conv2d_pool_forward_fused_sm90", 72, 40, 2),
        ("conv2d_pool_forward_fused_sm90", 136, 200, 2),
        ("conv2d_pool_forward_fused_cuda", 3, 24, 2),
        ("conv2d_pool_forward_cuda", 3, 24, 3),
    ],
)
@pytest.mark.parametrize("images", [2, 150])
def test_pooled_convolutions_are_exact(kernel, channels, outputs, window, images):
    """Of many images a block has several tiles."""
    if "sm90" in kernel and not HOPPER:
        pytest.skip("no Hopper GPU")
    x, w = (
        torch.randint(-1, 2, shape, device="cuda")
        .bfloat16()
        .to(memory_format=NHWC)
        .requires_grad_()
        for shape in ((images, channels, 17, 19), (outputs, channels, 3, 3))
    )
    with pyops.explain() as log:
        y = f.conv2d_relu_max_pool2d(x, w, kernel_size=window, pool_stride=2)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    assert [c.kernel for c in log.calls][:2] == [kernel, "conv2d_pool_backward_channels_cuda"]
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = F.max_pool2d(F.relu(F.conv2d(*wide)), window, 2)
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(gradients, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert torch.equal(mine, right.to(mine))


def _zeros(device):
    return lambda *sizes: torch.zeros(sizes, device=device)


def _state_on(there, here):
    weights = [here(16, 3), here(16, 4)]
    hx = (here(1, 1, 4), there(1, 1, 4))
    return f.lstm(here(2, 1, 3), hx, weights, False, 1, 0.0, False, False, False)


# By the operator that must say so: a call of tensors there, among others here.
ON_TWO_DEVICES = {
    "conv2d": lambda there, here: f.conv2d(here(1, 2, 5, 5), there(3, 2, 3, 3)),
    "conv2d_relu": lambda there, here: f.conv2d_relu(
        here(1, 2, 5, 5), here(3, 2, 3, 3), there(3)),
    "linear": lambda there, here: f.linear(here(2, 3), there(4, 3)),
    "linear_relu": lambda there, here: f.linear_relu(here(2, 3), here(4, 3), there(4)),
    "scaled_dot_product_attention": lambda there, here: f.scaled_dot_product_attention(
        here(1, 1, 2, 4), here(1, 1, 2, 4), here(1, 1, 2, 4), there(2, 2)),
    "lstm": _state_on,
    "lstm_cell": lambda there, here: f.lstm_cell(
        here(1, 3), (here(1, 4), here(1, 4)), here(16, 3), there(16, 4)),
    "gru_cell": lambda there, here: f.gru_cell(
        here(1, 3), there(1, 4), here(12, 3), here(12, 4)),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("there", ["cpu", "cuda"])
@pytest.mark.parametrize("op", ON_TWO_DEVICES)
def test_tensors_on_two_devices_are_refused(op, there, inference):
    here = "cuda" if there == "cpu" else "cpu"
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match=rf"{op}: .*{here}"):
        ON_TWO_DEVICES[op](_zeros(there), _zeros(here))
