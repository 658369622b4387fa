"""Tensors of more than 2^31 elements, where a 32-bit index would come out elsewhere.

A full comparison with native would need several times the memory. The first and the last pieces say
enough: an index that wraps around reads or writes at the wrong end.
"""

import fcntl

import pytest
import torch
import torch.nn.functional as F

import pyops

P = pyops.functional
BEYOND = 2**31 + 2**20
NHWC = torch.channels_last
pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]  # with the wait for a turn


@pytest.fixture(autouse=True)
def turn():
    """One of these tests at a time, of all the processes that test side by side."""
    with open(__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def room(turn):
    """40 GB for half precision and its gradient; fresh memory is not filled, which takes longer."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        pytest.skip(f"needs 40 GB of the GPU's memory, {free / 1e9:.0f} GB are free")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.cuda.empty_cache()


def integers(*shape):
    """Small ones, whose sums are exact, different at both ends."""
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    return x.random_(-2, 3)


def ends(t):
    """The first and the last rows along dimension 0."""
    return torch.cat([t[:2], t[-2:]])


def judge(op, native, x, *weights):
    """Forward and the input's gradient of both ends, equal to native's on these alone."""
    x.requires_grad_()
    y = op(x, *weights)
    assert x.numel() > 2**31 or y.numel() > 2**31
    start = torch.ones_like(y)
    (grad,) = torch.autograd.grad(y, x, start)
    leaf = ends(x.detach()).double().requires_grad_()
    expected = native(leaf, *(w.double() for w in weights))
    assert torch.equal(ends(y.detach()), expected.to(y))
    (right,) = torch.autograd.grad(expected, leaf, torch.ones_like(expected))
    assert torch.equal(ends(grad), right.to(grad))


@pytest.mark.parametrize("format", [torch.contiguous_format, NHWC], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (5, 3), (16, 16)])
def test_max_pool2d(kernel, stride, format):
    """Unrolled windows, such as are told at run time, and such as a warp takes."""
    x = integers(BEYOND // 2**16 + 1, 64, 32, 32).to(memory_format=format)
    judge(lambda x: P.max_pool2d(x, kernel, stride), lambda x: F.max_pool2d(x, kernel, stride), x)


def test_max_pool2d_of_one_plane():
    x = integers(1, 2, 2**15, 2**15 + 16)
    y = P.max_pool2d(x, 2)
    right = F.max_pool2d(x[..., -64:, -64:].float(), 2)
    assert torch.equal(y[..., -32:, -32:], right.to(y))


@pytest.mark.parametrize(
    ("format", "channels"), [(torch.contiguous_format, 8), (NHWC, 8), (NHWC, 32)], ids=str
)
def test_conv2d(format, channels):
    """On ordinary units, on tensor cores by parts of the batch, on Hopper's as one."""
    images = BEYOND // (channels * 2**12) + 1
    x = integers(images, channels, 64, 64).to(memory_format=format)
    w = integers(8, channels, 3, 3).to(memory_format=format)
    judge(
        lambda x, w: P.conv2d_relu(x, w, padding=1),
        lambda x, w: F.relu(F.conv2d(x, w, padding=1)),
        x,
        w,
    )


@pytest.mark.parametrize("channels", [8, 32])
def test_weight_gradient_of_conv2d(channels):
    """Sums that float32 holds exactly, also of parts of the batch; native adds up by pieces."""
    x, grad = (
        integers(BEYOND // (channels * 2**12) + 1, channels, 64, 64).to(memory_format=NHWC)
        for _ in range(2)
    )
    w = integers(channels, channels, 3, 3).to(memory_format=NHWC)
    both, wanted = [1, 1], [False, True, False]
    _, ours, _ = torch.ops.pyops.conv2d_backward(grad, x, w, None, both, both, both, 1, wanted)
    right = torch.zeros_like(w, dtype=torch.float64)
    for piece, start in zip(x.split(2048), grad.split(2048), strict=True):
        right += torch.nn.grad.conv2d_weight(piece.double(), w.shape, start.double(), padding=1)
    assert torch.equal(ours, right.to(ours))


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_pooled_conv2d(window, stride):
    """On Hopper in one kernel, which counts images and patches; else by parts of the batch."""
    x = integers(BEYOND // 2**15 + 1, 8, 64, 64).to(memory_format=NHWC)
    w = integers(8, 8, 3, 3).to(memory_format=NHWC)
    pool = {"kernel_size": window, "pool_stride": stride}
    judge(
        lambda x, w: P.conv2d_relu_max_pool2d(x, w, padding=1, **pool),
        lambda x, w: F.max_pool2d(F.relu(F.conv2d(x, w, padding=1)), window, stride),
        x,
        w,
    )


def test_linear():
    judge(P.linear_relu, lambda x, w: F.relu(F.linear(x, w)), integers(BEYOND // 64, 64),
          integers(72, 64))  # fmt: skip


def test_attention():
    """All heads alike at both ends; one key is taken whole, so that values come out exact."""
    heads = BEYOND // (64 * 64) + 1
    q, v = integers(heads, 1, 64, 64), integers(heads, 1, 1, 64)
    out = P.scaled_dot_product_attention(q, v, v)
    assert out.numel() > 2**31
    assert torch.equal(ends(out), ends(v).expand(4, 1, 64, 64))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_networks(kind):
    """A sequence at either end of the batch, as it comes out alone."""
    rows, steps, width, hidden = BEYOND // (4 * 64) + 1, 4, 64, 8
    x = integers(steps, rows, width).div_(8)
    gates = 4 if kind == "lstm" else 3
    weights = [
        torch.randn(gates * hidden, n, device="cuda").bfloat16() / 8 for n in (width, hidden)
    ]

    def run(x):
        zero = x.new_zeros(1, x.size(1), hidden)
        hx = (zero, zero) if kind == "lstm" else zero
        return getattr(P, kind)(x, hx, weights, False, 1, 0.0, False, False, False)[0]

    y = run(x)
    for rows in (slice(0, 64), slice(-64, None)):
        alone = run(x[:, rows].contiguous())
        torch.testing.assert_close(y[:, rows], alone, rtol=0.02, atol=0.02)
