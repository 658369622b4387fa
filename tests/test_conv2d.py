"""conv2d, conv2d_relu and conv2d_relu_max_pool2d."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import pyops
from pyops.functional import conv2d, conv2d_relu, conv2d_relu_max_pool2d
from suite import Case, ExactSuite, Randn, Reject, on_devices, tensors_of

LAST = torch.channels_last


# The input's shape, the weight's, and what else the convolution is given.
CONVOLUTIONS = {
    "tiny": ((2, 2, 4, 5), (3, 2, 3, 2), {}),
    "odd": ((2, 3, 9, 11), (5, 3, 3, 3), dict(padding=1)),
    "uneven stride and padding":
        ((2, 4, 13, 12), (6, 4, 3, 4), dict(stride=(2, 3), padding=(2, 1))),
    "stride beyond the kernel": ((2, 3, 11, 9), (4, 3, 2, 1), dict(stride=3)),
    "dilation": ((2, 3, 13, 15), (5, 3, 3, 2), dict(dilation=(2, 3), padding=(2, 0), stride=2)),
    "dilation meets stride":
        ((1, 2, 14, 13), (3, 2, 3, 3), dict(dilation=(4, 2), stride=(2, 4), padding=3)),
    "groups": ((2, 6, 7, 8), (8, 3, 3, 3), dict(groups=2, padding=1)),
    "depthwise": ((2, 19, 9, 10), (19, 1, 3, 3), dict(groups=19, padding=1)),
    "depthwise, strided": ((2, 5, 11, 12), (5, 1, 3, 5), dict(
        groups=5, stride=(2, 3), padding=(1, 4), dilation=(2, 1))),
    "depthwise, small planes":
        ((2, 37, 7, 6), (37, 1, 5, 4), dict(groups=37, stride=(2, 1), padding=(2, 1))),
    "depthwise, rows of words": ((3, 5, 7, 45), (5, 1, 3, 3), dict(groups=5, padding=(2, 1))),
    "depthwise, runs": ((3, 5, 7, 22), (5, 1, 3, 3), dict(groups=5, padding=(2, 1))),
    "depthwise, runs of five taps": ((2, 5, 12, 13), (5, 1, 5, 5), dict(groups=5, padding=(1, 2))),
    "depthwise, wide windows": ((1, 16, 11, 13), (16, 1, 7, 7), dict(groups=16, padding=3)),
    "depthwise, skipping": ((2, 37, 9, 12), (37, 1, 5, 5), dict(groups=37, stride=2, padding=2)),
    "depthwise, half rows": ((3, 5, 8, 13), (5, 1, 3, 3), dict(groups=5, stride=2, padding=1)),
    "depthwise, high": ((2, 5, 7, 14), (5, 1, 3, 3), dict(groups=5, stride=2, padding=(2, 1))),
    "depthwise, halved": ((2, 11, 9, 45), (11, 1, 3, 3), dict(groups=11, stride=2, padding=1)),
    "depthwise, inputs that no tap meets":
        ((2, 7, 4, 20), (7, 1, 2, 3), dict(groups=7, stride=(3, 2), padding=(1, 2), dilation=2)),
    "depthwise multiplier": ((2, 3, 6, 7), (6, 1, 3, 3), dict(groups=3, padding=1)),
    "the window covers the image": ((3, 5, 4, 6), (7, 5, 4, 6), dict(stride=2)),
    "pointwise": ((3, 17, 6, 5), (35, 17, 1, 1), {}),
    "pointwise, images on end": ((5, 64, 7, 9), (40, 64, 1, 1), {}),
    "pointwise, part of a step": ((3, 50, 6, 7), (35, 50, 1, 1), {}),
    "pointwise, strided": ((3, 9, 7, 8), (5, 9, 1, 1), dict(stride=2)),
    "pointwise, one strided row": ((3, 32, 1, 8), (32, 32, 1, 1), dict(stride=3)),
    "one column": ((2, 3, 9, 1), (4, 3, 3, 1), dict(padding=(1, 0))),
    "padding beyond the image": ((1, 2, 4, 3), (3, 2, 3, 3), dict(padding=5)),
    "blocks in depth and rows": ((2, 37, 12, 13), (35, 37, 3, 3), dict(padding=1)),
    "blocks of depth, images in turn": ((4, 72, 20, 21), (33, 72, 3, 3), dict(padding=1)),
    "wide window of many channels": ((2, 34, 9, 8), (36, 34, 5, 3), dict(padding=1)),
    "many channels, strided": ((2, 32, 9, 11), (34, 32, 3, 3), dict(stride=2, padding=1)),
    "first layer": ((2, 3, 17, 20), (24, 3, 5, 3), dict(stride=(2, 3), padding=(2, 1))),
    "patches": ((2, 3, 17, 16), (16, 3, 4, 4), dict(stride=4)),
    "same": ((2, 3, 8, 9), (4, 3, 3, 5), dict(padding="same", dilation=2)),
    "same, uneven": ((2, 3, 8, 9), (4, 3, 2, 4), dict(padding="same")),
    "valid": ((2, 3, 8, 9), (4, 3, 2, 3), dict(padding="valid", stride=2)),
    "no batch dimension": ((3, 8, 9), (4, 3, 3, 3), dict(padding=1)),
    "empty batch": ((0, 3, 8, 9), (4, 3, 3, 3), dict(padding=1)),
}  # fmt: skip


def conv_cases(shift, names=CONVOLUTIONS):
    """shift: added to the bias, so that a following ReLU passes most elements."""

    def case(name, x, w, options):
        weight = Randn(*w, scale=2.0 ** -((w[1] * w[2] * w[3]).bit_length() // 2))
        bias = Randn(w[0], shift=shift)
        return Case(name, input=Randn(*x), weight=weight, bias=bias, **options)

    return [case(name, *CONVOLUTIONS[name]) for name in names]


# What the fusions with their shared kernels can still get wrong: layout, groups, grids and checks.
FUSED = [
    "odd",
    "uneven stride and padding",
    "dilation meets stride",
    "groups",
    "depthwise",
    "depthwise, half rows",
    "pointwise",
    "blocks in depth and rows",
    "same, uneven",
    "no batch dimension",
    "empty batch",
]


CONV_REJECTS = [
    Reject(
        r"weight must be \(O, C/groups, kh, kw\) with C=3, .* got \[3, 2", input=Randn(2, 3, 4, 5)
    ),
    Reject("weight must be .*groups=2, got", groups=2),
    Reject("multiple of groups=2", input=Randn(2, 4, 4, 5), groups=2),
    Reject(r"weight must be \(O, C/groups, kh, kw\), got \[2, 3, 2\]", weight=Randn(2, 3, 2)),
    Reject(r"input must be \(N, C, H, W\) or \(C, H, W\)", input=Randn(4, 5)),
    Reject("groups must be at least 1", groups=0),
    Reject("stride must be at least 1", stride=0),
    Reject("stride must be one integer or two", stride=(1, 1, 1)),
    Reject("padding must not be negative", padding=(0, -1)),
    Reject("dilation must be at least 1", dilation=0),
    Reject("covers 3x6, more than the padded input of 4x5", dilation=(1, 5)),
    Reject(r"padding must be at most 2\^40, got \[9223372036854775807", padding=2**63 - 1),
    Reject(r"dilation must be at most 2\^40, got", dilation=2**62),
    Reject(r"bias must be \(O\) with O=3, got \[2\]", bias=Randn(2)),
    Reject("weight must have the input's dtype", weight=Randn(3, 2, 3, 2, dtype=torch.float64)),
    Reject("bias must have the input's dtype", bias=Randn(3, dtype=torch.float64)),
    Reject("padding must be an integer, two, 'same' or 'valid', got 'full'", padding="full"),
    Reject("stride must be 1 with padding='same'", padding="same", stride=2),
]


class ConvSuite(ExactSuite):
    max_zeros = 0.9  # strides leave inputs unread, and their gradients zero

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_nonfinite(self, value, common, place):
        """Not in the weight: whether it meets the padding differs among native's own kernels."""
        case = self.cases[0]
        for name in ("input", "bias"):
            arguments = case.draw(common, place)
            with torch.no_grad():
                arguments[name].view(-1)[0] = value
            self.judge(arguments, case, max_zeros=1.0)


class TestConv2d(ConvSuite):
    op, reference = staticmethod(conv2d), staticmethod(F.conv2d)
    cases = conv_cases(0)
    rejects = CONV_REJECTS


class TestConv2dReLU(ConvSuite):
    op = staticmethod(conv2d_relu)
    reference = staticmethod(lambda **arguments: F.relu(F.conv2d(**arguments)))
    # A single output is too few to pool.
    cases = conv_cases(2, ["tiny", *FUSED, "the window covers the image"])
    rejects = CONV_REJECTS


def conv_relu_pool(
    *args,
    kernel_size=2,
    pool_stride=None,
    pool_padding=0,
    pool_dilation=1,
    ceil_mode=False,
    **kwargs,
):
    y = F.relu(F.conv2d(*args, **kwargs))
    return F.max_pool2d(y, kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)


def pool_case(name, hw, channels=5, **options):
    """From 16 channels on (AVX2: 8), planes are pooled as pixels."""
    x, w = Randn(2, 3, *hw), Randn(channels, 3, 3, 3, scale=0.25)
    return Case(name, input=x, weight=w, bias=Randn(channels, shift=2), **{"padding": 1, **options})


class TestConv2dReLUMaxPool2d(ConvSuite):
    op = staticmethod(conv2d_relu_max_pool2d)
    reference = staticmethod(conv_relu_pool)
    kinks = True
    cases = [
        *conv_cases(2, ["tiny", *FUSED]),
        pool_case("overlapping windows", (9, 11), kernel_size=3, pool_stride=2, pool_padding=1),
        pool_case("turned planes", (9, 11), 19, kernel_size=3, pool_stride=2, pool_padding=1),
        pool_case("turned ceil mode", (8, 10), 33, kernel_size=3, pool_stride=2, ceil_mode=True),
        pool_case(
            "turned planes of any convolution",
            (21, 16),
            17,
            stride=(2, 1),
            padding=(4, 2),
            dilation=(1, 2),
            kernel_size=(3, 2),
            pool_stride=(1, 2),
            pool_dilation=(2, 1),
        ),
        pool_case("turned wide offsets", (19, 18), 16, kernel_size=16, pool_stride=2),
        pool_case("rows wider than a vector", (6, 75), kernel_size=(2, 3), pool_stride=(1, 2)),
        pool_case("ceil mode", (8, 10), kernel_size=3, pool_stride=(2, 3), ceil_mode=True),
        pool_case("dilated window", (13, 12), kernel_size=2, pool_stride=1, pool_dilation=(3, 2)),
        pool_case(
            "padding on all sides",
            (7, 38),
            kernel_size=(4, 5),
            pool_stride=1,
            pool_padding=(2, 1),
            ceil_mode=True,
        ),
        pool_case("all offsets of a byte", (18, 19), kernel_size=(15, 17), pool_stride=2),
        pool_case("offsets beyond a byte", (19, 18), kernel_size=16, pool_stride=2, pool_padding=8),
    ]
    rejects = [
        *CONV_REJECTS,
        Reject("kernel_size must be at least 1", kernel_size=0),
        Reject("kernel_size must be one integer or two", kernel_size=(1, 2, 3)),
        Reject("pool_stride must be at least 1", pool_stride=0),
        Reject("pool_dilation must be at least 1", pool_dilation=0),
        Reject("pool_padding must be between 0 and half", pool_padding=2),
        Reject("pool_padding must be between 0 and half", pool_padding=-1),
        Reject("half of kernel_size", kernel_size=2, pool_padding=2, pool_dilation=3),
        Reject("kernel_size must fit 32 bits", kernel_size=2**31),
        Reject("pool_stride must fit 32 bits", pool_stride=2**31),
        Reject("kernel_size must fit into .* 2x4", kernel_size=5),
    ]

    def test_first_of_equal_maxima_and_last_nan(self, place):
        """An identity convolution shows the window's choice in the input's gradient."""
        x = torch.tensor(
            [[1.0, 1, 2, 2], [1, 1, 2, 2], [0, -1, 0, torch.nan], [-1, 0, torch.nan, 3]]
        )
        x = x.to(place).view(1, 1, 4, 4).requires_grad_()
        weight = torch.ones(1, 1, 1, 1, device=place)
        (ours,) = torch.autograd.grad(conv2d_relu_max_pool2d(x, weight).sum(), x)
        (native,) = torch.autograd.grad(conv_relu_pool(x, weight).sum(), x)
        assert torch.equal(ours, native)

    def test_a_window_of_more_taps_than_a_float_counts(self, place):
        """Its last one, an odd number beyond 2^24, is where the maximum lies."""
        x = torch.zeros(1, 1, 1, 2**24 + 2, device=place)
        x[..., -1] = 1
        x.requires_grad_()
        y = conv2d_relu_max_pool2d(x, torch.ones(1, 1, 1, 1, device=place), kernel_size=x.shape[2:])
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, x)

    def test_the_result_may_be_written_to(self, place):
        """As max pooling's own, whose backward does not read it."""
        gradients = []
        for function in (self.op, self.reference):
            arguments = self.cases[0].draw(torch.float64, place)
            y = function(**arguments)
            y *= y.detach() - 1
            gradients.append(torch.autograd.grad(y.sum(), [*tensors_of(arguments).values()]))
        torch.testing.assert_close(*gradients)

    def test_windows_that_lie_in_the_padding_alone(self, place):
        """Native's own backward writes outside the tensor here: only the forward compares."""
        x = torch.randn(1, 2, 3, 3, device=place, requires_grad=True)
        weight = torch.randn(2, 2, 3, 3, device=place, requires_grad=True)
        pool = dict(kernel_size=2, pool_padding=1, pool_dilation=2)
        y = conv2d_relu_max_pool2d(x, weight, **pool)
        assert torch.equal(y, conv_relu_pool(x, weight, **pool))
        for gradient in torch.autograd.grad(y.sum(), (x, weight)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


CHAIN = [(conv2d, F.conv2d), (conv2d_relu_max_pool2d, conv_relu_pool)]


@on_devices
@pytest.mark.parametrize(("ours", "native"), CHAIN)
@pytest.mark.parametrize("last", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 1, 6, 6), (1, 4, 2, 2), (0, 4, 6, 6)])
def test_memory_format_is_native(ours, native, last, shape, device):
    """channels_last when the input or the weight is, gradients too."""
    x, w = torch.randn(shape, device=device), torch.randn(6, shape[1], 1, 1, device=device)
    x, w = (
        t.contiguous(memory_format=LAST) if is_last else t
        for t, is_last in zip((x, w), last, strict=True)
    )
    assert ours(x, w).stride() == native(x, w).stride()


@pytest.mark.parametrize("value", [torch.inf, 1e-30], ids=str)
def test_an_image_that_cannot_be_split(value):
    """Its neighbours' results are what they are without it, in the forward and input gradient."""
    x, w = torch.randn(5, 8, 16, 16), torch.randn(16, 8, 3, 3)
    odd = x.clone()
    odd[1::2] = x[1::2] * value
    results = []
    for images in (x, odd):
        images.requires_grad_()
        y = conv2d(images, w, padding=1)
        grad = images.detach().repeat(1, 2, 1, 1)
        results.append((y, *torch.autograd.grad(y, images, grad)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[::2], b[::2])
    torch.testing.assert_close(results[1][0], F.conv2d(odd, w, padding=1), equal_nan=True)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@on_devices
def test_what_no_tap_meets_is_not_read(groups, memory_format, device):
    """The last column, at stride 2: not even times zero, in any direction."""
    x = torch.randn(2, 8, 5, 10, device=device).to(memory_format=memory_format)
    x[..., -1] = torch.nan
    x.requires_grad_()
    weight = torch.randn(8, 8 // groups, 3, 3, device=device, requires_grad=True)
    y = conv2d(x, weight, stride=2, groups=groups)
    outputs = [y, *torch.autograd.grad(y.sum(), (x, weight))]
    assert all(t.isfinite().all() for t in outputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("c", [3, 40, 64])
@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@on_devices
def test_bfloat16_that_is_not_finite(memory_format, c, value, device):
    """It reaches the outputs whose windows meet it, and no others."""
    x, w = torch.randint(-2, 3, (3, c, 19, 18)), torch.randint(1, 3, (33, c, 3, 3))
    x, w = (t.to(device, torch.bfloat16).to(memory_format=memory_format) for t in (x, w))
    x[1, c - 1, 5, 17] = value
    # In float64 native knows no kernel that lets it reach further, as Winograd's does.
    y, native = conv2d(x, w, padding=1), F.conv2d(x.double(), w.double(), padding=1).bfloat16()
    torch.testing.assert_close(y, native, rtol=0, atol=0, equal_nan=True)


def test_stride_beyond_all_measure():
    """The gradient of the input takes no time for coordinates that are not there."""
    x, w = (torch.randn(s, requires_grad=True) for s in ((2, 3, 8, 9), (4, 3, 2, 2)))
    options = {"stride": (2**31 - 1, 10**6), "padding": 2, "dilation": (3, 2)}
    y, native = conv2d(x, w, **options), F.conv2d(x, w, **options)
    grad = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad(z, (x, w), grad) for z in (y, native)), strict=True):
        torch.testing.assert_close(a, b)


def test_offsets_of_another_type():
    """What the fused pooling kept, given by hand: read as what it is or not at all."""
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    offsets = torch.zeros(1, 3, 2, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="offsets must be Byte, got Int"):
        torch.ops.pyops.conv2d_relu_max_pool2d_backward(
            torch.ones(1, 3, 2, 2),
            offsets,
            x,
            w,
            *[[1, 1], [0, 0], [1, 1], 1],
            *[[2, 2], [2, 2], [0, 0], [1, 1], False],
            [True] * 3,
        )


def test_batch_invariance():
    """An image's result does not depend on its neighbours."""
    x, w = torch.randn(5, 19, 9, 7), torch.randn(21, 19, 3, 3)
    whole = conv2d(x, w, padding=1)
    for image, expected in zip(x, whole, strict=True):
        assert torch.equal(conv2d(image, w, padding=1), expected)


@on_devices
def test_unwanted_gradients_are_not_computed(device):
    x, w, b = (torch.randn(s, device=device) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    w.requires_grad_()
    for op in (conv2d, conv2d_relu, conv2d_relu_max_pool2d):
        with pyops.explain() as log:
            op(x, w, b).sum().backward()
        assert {call.op for call in log.calls} >= {"conv2d_backward"}
        assert x.grad is None and b.grad is None and w.grad is not None
        w.grad = None


@on_devices
def test_pooled_forward_keeps_no_convolution(device):
    """What training saves: the input, the weight and a byte for each element of the result."""
    saved = []
    x = torch.randn(2, 3, 16, 16, device=device)
    w = torch.randn(8, 3, 3, 3, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = conv2d_relu_max_pool2d(x, w, padding=1)
    sizes = [x.numel() * 4, w.numel() * 4, y.numel()]
    assert sorted(t.numel() * t.element_size() for t in saved) == sorted(sizes)


@pytest.mark.parametrize(("ours", "native"), CHAIN)
def test_unbatched_strides(ours, native):
    """An image out of a channels_last batch."""
    x, w = torch.randn(2, 3, 8, 8).contiguous(memory_format=LAST), torch.randn(4, 3, 3, 3)
    assert ours(x[1], w).stride() == native(x[1], w).stride()


@pytest.mark.parametrize("op", [conv2d, conv2d_relu, conv2d_relu_max_pool2d])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_rejects_another_device(op, name):
    tensors = {"weight": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)}
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(RuntimeError, match=f"{name} must be on the input's device cpu, got meta"):
        op(torch.randn(2, 3, 8, 8), **tensors)


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize(("ours", "native"), CHAIN)
def test_layouts_of_others(ours, native, inference):
    """Native takes its own opaque layout, in every mode."""
    with torch.inference_mode(inference):
        x, w, b = (
            t.to_mkldnn()
            for t in (torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4))
        )
        y, expected = ours(x, w, b), native(x, w, b)
        assert y.layout == expected.layout
        torch.testing.assert_close(y.to_dense(), expected.to_dense())
