"""max_pool2d."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from judging import gradients_like
from suite import Case, ExactSuite, Randn, Reject, isas, on_devices

max_pool2d = pyops.functional.max_pool2d


def case(name, shape, kernel_size, **windows):
    return Case(name, input=Randn(*shape), kernel_size=kernel_size, **windows)


def bits(t):
    """What == cannot tell apart: the sign of zero. A NaN is a NaN."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.nan_to_num(nan=7.0).view(integer) if t.is_floating_point() else t


def specials(t):
    """Ties, zeros of both signs, infinities and NaNs, all of them many."""
    values = torch.tensor([-1, -0.0, 0.0, 1, torch.inf, -torch.inf, -torch.inf, torch.nan])
    which = torch.randint(len(values), t.shape, generator=torch.Generator().manual_seed(0))
    mixed = values[which].to(t)
    mixed[..., : t.shape[-1] // 2] = t[..., : t.shape[-1] // 2].detach().round()
    return mixed


def assert_identical(x, **windows):
    outputs = []
    for op in (max_pool2d, F.max_pool2d):
        leaf = x.clone().requires_grad_()
        value, indices = op(leaf, **windows, return_indices=True)
        start = gradients_like([value], integers=True)[0]
        trained = [value, op(leaf, **windows)]
        gradients = [torch.autograd.grad(y, leaf, start)[0] for y in trained]
        outputs.append([value.detach(), indices, op(x, **windows), *gradients])
    for ours, native in zip(*outputs, strict=True):
        assert ours.dtype == native.dtype
        assert ours.stride() == native.stride()
        assert torch.equal(bits(ours), bits(native))


class TestMaxPool2d(ExactSuite):
    op, reference = staticmethod(max_pool2d), staticmethod(F.max_pool2d)
    max_zeros = 0.995  # of a large window's gradient, one element is not
    cases = [
        case("tiny", (1, 2, 5, 4), 2),
        case("usual", (2, 3, 33, 35), 3, stride=2, padding=1),
        case("rows of whole vectors", (2, 2, 6, 64), 2),
        case("rows shorter than a vector", (2, 5, 14, 14), 2),
        case("rows shorter than half a vector", (3, 5, 13, 13), 3, stride=2),
        case("short planes of one row of outputs", (3, 3, 2, 7), 2),
        case("a short row whose last window hangs over", (3, 3, 6, 7), 2, ceil_mode=True),
        case("rows that end inside a vector", (2, 3, 8, 44), 2),
        case("a last column that nothing covers", (2, 3, 9, 35), 2),
        case("no padding", (2, 3, 27, 55), 3, stride=2),
        case("stride 1", (2, 2, 9, 37), 3, stride=1, padding=1),
        case("ceil", (1, 3, 10, 36), (3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True),
        case("no batch", (17, 9, 11), (2, 4), stride=(1, 2), padding=(1, 2)),
        case("kernel 1", (2, 17, 5, 7), 1, stride=2),
        case("dilated", (2, 2, 19, 41), 3, stride=1, padding=1, dilation=(2, 3)),
        case("dilated stride 2", (1, 2, 21, 45), (3, 4), stride=2, padding=(1, 2), dilation=2),
        case("stride 3", (2, 3, 16, 55), (4, 5), stride=3, padding=2),
        case("beyond the kernel", (2, 18, 13, 50), 2, stride=(3, 5)),
        case("one column", (3, 2, 20, 1), (3, 1), stride=1, padding=(1, 0)),
        case("one window", (2, 33, 6, 6), 6),
        case("more taps than a byte", (1, 3, 20, 40), (17, 18), stride=(2, 3), padding=8),
        case("many windows over an element", (1, 2, 15, 20), 13, stride=1, padding=6),
        case("large windows of many planes", (3, 40, 40, 45), 5, stride=1, padding=2),
        case("large windows of short rows", (2, 5, 30, 7), 7, stride=3, padding=3),
        case("no images", (0, 3, 6, 6), 2),
    ]
    rejects = [
        Reject("input must be \\(N, C, H, W\\) or \\(C, H, W\\), got", input=Randn(4, 4)),
        Reject("input must have no empty dimension", input=Randn(2, 0, 4, 4)),
        Reject("input must have no empty dimension", input=Randn(0, 4, 4)),
        Reject("kernel_size must be at least 1, got \\(0, 0\\)", kernel_size=0),
        Reject("kernel_size must be one integer or two, got \\[2, 2, 2\\]", kernel_size=(2, 2, 2)),
        Reject("kernel_size must fit 32 bits", kernel_size=2**33),
        Reject("stride must be at least 1, got \\(2, 0\\)", stride=(2, 0)),
        Reject("stride must be at least 1, got \\(-1, -1\\)", stride=-1),
        Reject("padding must be at least 0, got \\(-1, -1\\)", padding=-1),
        Reject("padding must be at most half of kernel_size \\(2, 2\\)", padding=2),
        Reject("padding must be one integer or two, got \\[1, 1, 1\\]", padding=(1, 1, 1)),
        Reject("dilation must be at least 1, got \\(0, 0\\)", dilation=0),
        Reject("the output must have at least one element, .* gives \\(0, 0\\)", kernel_size=9),
    ]

    def test_identical_to_native(self, case, dtype, place):
        """Values and indices bit by bit, strides too; the gradient where nothing is rounded."""
        arguments = case.draw(dtype, place, grad=False)
        drawn = arguments.pop("input")
        # With channels last native's kernel of a GPU takes element 0 for the maximum of -inf alone.
        lowest = -9 if place == "cuda" else -torch.inf
        for x in (drawn, specials(drawn)):
            assert_identical(x, **arguments)
            if x.dim() == 4:
                last = x.clamp(min=lowest).to(memory_format=torch.channels_last)
                assert_identical(last, **arguments)

    def test_changed_after_saving(self, device):
        """Native refuses, as it saves the input; we do not, and the gradient stays right."""
        arguments = self.cases[0].draw(torch.float32, device)
        x = arguments["input"]
        expected = torch.autograd.grad(self.reference(**arguments).sum(), x)[0]
        output = self.op(**arguments)
        with torch.no_grad():
            x.neg_()
        assert torch.equal(torch.autograd.grad(output.sum(), x)[0], expected)


@on_devices
def test_training_saves_a_byte_per_output(device):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        y = max_pool2d(torch.randn(2, 3, 8, 8, device=device, requires_grad=True), 2)
    assert [(t.dtype, t.shape) for t in saved] == [(torch.uint8, y.shape)]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("indices", [False, True])
@on_devices
def test_a_window_in_the_padding_passes_no_gradient(format, indices, device):
    """Taps at -1 and 2 of two elements: -inf as native, which then counts it to some element."""
    windows = dict(kernel_size=2, stride=1, padding=1, dilation=3)
    x = torch.randn(2, 3, 3, 3, device=device).to(memory_format=format)
    x = x[..., :2].clone(memory_format=format).requires_grad_()
    out = max_pool2d(x, **windows, return_indices=indices)
    y = out[0] if indices else out
    assert torch.equal(y, F.max_pool2d(x, **windows))
    assert torch.equal(y, torch.full_like(y, -torch.inf))
    for create_graph in (False, True):
        start = torch.ones_like(y, requires_grad=True)
        (grad,) = torch.autograd.grad(y, x, start, create_graph=create_graph, retain_graph=True)
        assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("place", isas())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "threads"), [(1, 1), (17, 1), (3, 3)])
def test_a_channel_alone_among_pixels(place, dtype, channels, threads):
    """Its sums lie side by side where its elements do not: the last of a block, or of a thread."""
    windows = dict(kernel_size=5, stride=(1, 2), padding=2, dilation=(2, 1))
    x = torch.randn(1, channels, 12, 11).to(dtype, memory_format=torch.channels_last)
    y = F.max_pool2d(x, **windows)
    grad = torch.randint(-4, 5, y.shape).to(dtype)
    torch.set_num_threads(threads)
    try:
        with pyops.isa_cap(place):
            got = gradient(max_pool2d, x, grad, **windows)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(got.double(), gradient(F.max_pool2d, x.double(), grad.double(), **windows))


def gradient(pool, x, grad, **windows):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(pool(x, **windows), x, grad)[0]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_windows_beyond_all_measure(format):
    """No kernel may keep memory for what lies between taps or windows."""
    x = torch.randn(1, 2, 1, 100_001).to(memory_format=format)
    assert_identical(x, kernel_size=(1, 2), stride=1, dilation=(1, 50_000))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(1, 2, 5, 40).to(dtype, memory_format=format)
        assert_identical(x, kernel_size=2, stride=2**31 - 1)
        assert_identical(x, kernel_size=2, stride=(2**31 - 1, 1))


def test_a_window_wider_than_two_rows():
    """The vector kernel would go to all of its taps, most of them outside."""
    x = torch.randn(1, 2, 9, 40)
    with pyops.explain() as log:
        assert_identical(x, kernel_size=201, stride=1, padding=100)
    kernels = {call.kernel for call in log.calls if call.op == "max_pool2d"}
    assert kernels == {"max_pool2d_forward_scalar"}


@on_devices
def test_backward_refuses_what_the_forward_cannot_have_saved(device):
    backward = torch.ops.pyops.max_pool2d_backward
    windows = ([4, 4], [2, 2], [2, 2], [0, 0], [1, 1], False)
    grad = torch.randn(1, 1, 2, 2, device=device)
    with pytest.raises(RuntimeError, match="argmax must have grad's shape"):
        backward(grad, torch.zeros(1, 1, 2, 3, dtype=torch.uint8, device=device), *windows)
    with pytest.raises(RuntimeError, match="taps \\(uint8\\) or indices \\(int64\\), got Int"):
        backward(grad, torch.zeros(1, 1, 2, 2, dtype=torch.int32, device=device), *windows)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="max_pool2d_backward: every tensor must be on cuda"):
            backward(grad, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), *windows)


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
def test_layouts_of_others(inference):
    with torch.inference_mode(inference):
        x = torch.randn(2, 3, 8, 8).to_mkldnn()
        assert torch.equal(max_pool2d(x, 2).to_dense(), F.max_pool2d(x, 2).to_dense())
