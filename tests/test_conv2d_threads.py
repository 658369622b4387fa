"""What the threads of the CUDA kernels of convolutions compute, run by the CPU."""

import ctypes
import functools
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from host import int64s, library
from suite import DTYPES


@dataclass(frozen=True)
class Shape:
    """A convolution by the sizes that native takes."""

    n: int
    c: int
    hw: tuple[int, int]
    o: int
    k: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output(self):
        windows = zip(self.hw, self.padding, self.dilation, self.k, self.stride, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in windows)

    def numbers(self, last):
        both = (*self.output(), self.groups, *self.stride, *self.padding, *self.dilation)
        return int64s(self.n, self.c, *self.hw, self.o, *self.k, *both, int(last))

    def options(self):
        return {f: getattr(self, f) for f in ("stride", "padding", "dilation", "groups")}


SHAPES = [
    Shape(1, 1, (1, 1), 1, (1, 1)),
    Shape(2, 3, (9, 11), 5, (3, 3), padding=(1, 1)),
    Shape(2, 4, (13, 12), 6, (3, 4), (2, 3), (2, 1)),
    Shape(2, 3, (11, 9), 4, (2, 1), (3, 4)),
    Shape(1, 2, (14, 13), 3, (3, 3), (2, 4), (3, 3), (4, 2)),
    Shape(1, 2, (12, 11), 3, (4, 3), (3, 2), (3, 2), (2, 3)),
    Shape(1, 2, (4, 3), 3, (3, 3), padding=(5, 5)),
    Shape(2, 6, (7, 8), 8, (3, 3), padding=(1, 1), groups=2),
    Shape(2, 19, (6, 7), 19, (3, 3), padding=(1, 1), groups=19),
    Shape(2, 5, (9, 8), 10, (3, 5), (2, 3), (1, 4), (2, 1), groups=5),
    Shape(3, 17, (12, 15), 70, (1, 1)),
    Shape(1, 70, (5, 6), 66, (3, 3), padding=(1, 1)),
    Shape(1, 2, (3, 2), 3, (2, 2), (5, 4), (1, 1)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


def threads():
    return library("conv2d_threads.cpp")


def pointer(t):
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def integers(*shape, dtype, format=torch.contiguous_format):
    return torch.randint(-1, 2, shape).to(dtype).contiguous(memory_format=format)


def unwritten(like, dtype, format=torch.contiguous_format):
    return torch.full(like.shape, torch.nan, dtype=dtype).contiguous(memory_format=format)


def call(function, *arguments):
    values = [pointer(a) if a is None or torch.is_tensor(a) else a for a in arguments]
    getattr(threads(), function)(*values)


AXES = [
    (size, taps, stride, padding, dilation)
    for size, taps, stride, padding, dilation in product(
        range(1, 7), range(1, 5), range(1, 5), range(3), range(1, 5)
    )
    if size + 2 * padding > dilation * (taps - 1)
]


def test_phases_meet_every_output_once():
    """All small axes: (input, tap, output) from the phases, and as the forward defines them."""
    library_ = threads()
    library_.phases.restype = library_.output_at.restype = ctypes.c_int64
    for size, taps, stride, padding, dilation in AXES:
        outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        axis = int64s(size, outputs, taps, stride, padding, dilation)
        meetings = {
            (i, k, o)
            for o, k in product(range(outputs), range(taps))
            if 0 <= (i := o * stride - padding + k * dilation) < size
        }
        seen, inputs = [], []
        most = (size + stride - 1) // stride
        for number in range(library_.phases(axis)):
            values = int64s(*[0] * 7)
            library_.phase(axis, ctypes.c_int64(number), values)
            first, count, tap, step, reaching, origin, hop = values
            assert count <= most
            inputs += [first + j * stride for j in range(count)]
            seen += [
                (first + j * stride, tap + t * step, origin + j - t * hop)
                for j, t in product(range(count), range(reaching))
                if 0 <= origin + j - t * hop < outputs
            ]
        assert sorted(inputs) == list(range(size))
        assert sorted(seen) == sorted(meetings)
        whole = product(range(size), range(taps))
        found = {(i, k, library_.output_at(axis, ctypes.c_int64(i), k)) for i, k in whole}
        assert {m for m in found if m[2] >= 0} == meetings


def gathered(size, before, after, stride, reach):
    """The pixels where a TMA load begins between the corners of an axis; a tap is counted on."""
    return range(-before, size + after - reach, stride)


def test_tma_meets_every_output():
    """It finds as many pixels as there are outputs; of grad_y, as there are inputs."""
    threads().padding_after_axis.restype = ctypes.c_int64
    for size, taps, stride, padding, dilation in AXES:
        reach = dilation * (taps - 1)
        outputs = (size + 2 * padding - reach - 1) // stride + 1
        axis = int64s(size, outputs, taps, stride, padding, dilation)
        after = threads().padding_after_axis(axis)
        assert after >= 0
        starts = gathered(size, padding, after, stride, reach)
        assert list(starts) == [o * stride - padding for o in range(outputs)]
        if stride == 1:
            last = padding - reach + size - outputs
            starts = range(padding - reach, outputs + last)
            whole = product(range(size), range(taps))
            for i, k in whole:
                output = starts[i] + reach - k * dilation
                output = output if 0 <= output < outputs else -1
                assert output == threads().output_at(axis, ctypes.c_int64(i), k)
            assert len(starts) == size
        assert threads().gathered_by_tma(axis)


@pytest.mark.parametrize(
    ("size", "taps", "stride", "padding", "dilation", "fits"),
    [
        (300, 128, 1, 127, 1, True),
        (300, 129, 1, 128, 1, False),
        (300, 3, 1, 0, 64, True),
        (300, 3, 1, 0, 65, False),
        (300, 128, 1, 64, 2, False),
        (300, 3, 8, 1, 1, True),
        (300, 3, 9, 1, 1, False),
    ],
)
def test_what_tma_cannot_gather(size, taps, stride, padding, dilation, fits):
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    axis = int64s(size, outputs, taps, stride, padding, dilation)
    assert bool(threads().gathered_by_tma(axis)) == fits


FITTING = Shape(2, 64, (40, 40), 64, (3, 3))


@pytest.mark.parametrize(
    ("changes", "last", "fits"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"c": 60}, True, False),
        ({"o": 60}, True, False),
        ({"groups": 2}, True, False),
        ({"k": (32, 3)}, True, True),
        ({"k": (33, 3)}, True, False),
        ({"stride": (1, 32)}, True, True),
        ({"stride": (33, 1)}, True, False),
        ({"k": (1, 1), "stride": (2**32 + 1, 1)}, True, False),
        ({"k": (1, 1), "dilation": (1, 2**32 + 1)}, True, False),
        ({"padding": (2**15, 1), "n": 1, "hw": (1, 1)}, True, True),
        ({"padding": (2**15 + 1, 1), "n": 1, "hw": (1, 1)}, True, False),
        ({"n": 1, "hw": (1, 1), "k": (1, 1), "c": 8, "o": 2**22}, True, True),
        ({"n": 1, "hw": (1, 1), "k": (1, 1), "c": 8, "o": 2**22 + 8}, True, False),
        ({"n": 2**40}, True, True),
        ({"hw": (2**12, 2**12 - 1)}, True, True),
        ({"hw": (2**12, 2**12)}, True, False),
    ],
    ids=str,
)
def test_what_tensor_cores_take(changes, last, fits):
    """Numbers that CUTLASS keeps in 32 bits, and tiles that a grid counts in 16."""
    shape = replace(FITTING, **changes)
    code = DTYPES.index(torch.bfloat16)
    assert bool(threads().takes_tensorop(code, shape.numbers(last))) == fits


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, (2**31 - 1) // (2 * 64 * 40 * 40)),
        ({"hw": (2**12, 2**12 - 1)}, 1),
        ({"hw": (2**12, 2**12 - 1), "o": 72}, 0),
        ({"padding": (20, 20), "k": (1, 1)}, (2**31 - 1) // (2 * 64 * 80 * 80)),
    ],
    ids=str,
)
def test_how_many_images_a_launch_takes(changes, images):
    """The larger of input and output stays below 2 GiB."""
    shape = replace(FITTING, **changes)
    threads().images_at_once.restype = ctypes.c_int64
    code = DTYPES.index(torch.bfloat16)
    assert threads().images_at_once(code, shape.numbers(last=True)) == images


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("most", [1, 2, 3, 5, 6])
def test_images_in_parts(most, dtype, format):
    """Every image once, and grad_weight of all of them rounded once."""
    shape = Shape(5, 4, (21, 19), 6, (3, 2), (2, 1), (1, 1), groups=2)
    (x, w, _, y, grad), gradients = reference(shape, 0, False)
    numbers, code = shape.numbers(format == torch.channels_last), DTYPES.index(dtype)
    xc, wc, gc = (t.to(dtype).contiguous(memory_format=format) for t in (x, w, grad))
    ours = [unwritten(t, dtype, format) for t in (y, x, w)]
    images = ctypes.c_int64(most)
    call("forward_of_images", images, code, numbers, xc, wc, ours[0])
    call("backward_of_images", images, code, numbers, gc, xc, wc, *ours[1:])
    for mine, right in zip(ours, (y, *gradients[:2]), strict=True):
        assert torch.equal(mine, right.to(dtype))


@pytest.mark.parametrize("kernel", [2, 17])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_pooled_images_in_parts(format, kernel):
    """Offsets of a byte and of four, with room for one part's convolution."""
    shape = Shape(5, 4, (21, 19), 6, (3, 2), padding=(1, 1))
    (x, w, _, y, _), _ = reference(shape, 1, False)
    pooled = F.max_pool2d(y, kernel, 2)
    windows = int64s(kernel, kernel, 2, 2, 0, 0, 1, 1, *pooled.shape[2:])
    numbers, code = shape.numbers(format == torch.channels_last), DTYPES.index(torch.float32)
    xc, wc, grad = (t.float().contiguous(memory_format=format) for t in (x, w, pooled + 1))
    kind = torch.int32 if kernel * kernel > 255 else torch.uint8
    whole = []
    for most in (5, 2, 1):
        mine, grad_y = (unwritten(t, torch.float32, format) for t in (pooled, y))
        offsets = torch.zeros(pooled.shape, dtype=kind).contiguous(memory_format=format)
        tensors = xc, wc, mine, offsets, grad, grad_y
        call("pool_of_images", ctypes.c_int64(most), code, numbers, windows, *tensors)
        whole = whole or [pooled.float(), offsets, grad_y]
        assert all(map(torch.equal, (mine, offsets, grad_y), whole))


@functools.cache
def reference(shape, relu, with_bias):
    """Inputs, and what float64 makes of them: the result and the gradients."""
    torch.manual_seed(0)
    x, w, b = (
        integers(*s, dtype=torch.float64).requires_grad_()
        for s in (
            (shape.n, shape.c, *shape.hw),
            (shape.o, shape.c // shape.groups, *shape.k),
            (shape.o,),
        )
    )
    y = F.conv2d(x, w, b if with_bias else None, **shape.options())
    y = F.relu(y) if relu else y
    grad = integers(*y.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(y, (x, w, b), grad, allow_unused=True)
    return [t.detach() for t in (x, w, b, y, grad)], gradients


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_exact(shape, dtype, format):
    """Sums of small integers are, in any order: a wrong index shows, and so does a wrong mask."""
    numbers = shape.numbers(format == torch.channels_last)
    kinds = (0, 1) if threads().takes_depthwise(numbers) else (0,)
    for relu, with_bias, kind in product((0, 1), (False, True), kinds):
        (x, w, b, expected, grad), gradients = reference(shape, relu, with_bias)
        xc, wc, gc = (t.to(dtype).contiguous(memory_format=format) for t in (x, w, grad))
        y = unwritten(expected, dtype, format)
        bias = b.to(dtype) if with_bias else None
        call("forward", kind, DTYPES.index(dtype), numbers, relu, xc, wc, bias, y)
        assert torch.equal(y, expected.to(dtype))
        for wanted in ((True, True, with_bias), (False, not with_bias, with_bias)):
            ours = [
                unwritten(g, dtype, format if g.dim() == 4 else torch.contiguous_format)
                if want
                else None
                for g, want in zip((x, w, b), wanted, strict=True)
            ]
            mask = y if relu else None
            call("backward", kind, DTYPES.index(dtype), numbers, gc, mask, xc, wc, *ours)
            for mine, right in zip(ours, gradients, strict=True):
                assert mine is None or torch.equal(mine, right.to(dtype))


def test_many_positions_are_summed_in_parts():
    """More positions than a stretch has: every part is added once."""
    shape = Shape(2, 2, (40, 33), 3, (3, 3), padding=(1, 1))
    (x, w, _, _, grad), gradients = reference(shape, 0, True)
    grad_w, grad_b = (unwritten(g, torch.float64) for g in gradients[1:])
    numbers = shape.numbers(False)
    call(
        "backward", 0, DTYPES.index(torch.float64), numbers, grad, None, x, w, None, grad_w, grad_b
    )
    assert torch.equal(grad_w, gradients[1])
    assert torch.equal(grad_b, gradients[2])


# Kernel, stride, padding, dilation and ceil mode of the pooling.
POOLS = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 2), (2, 3), (1, 1), (1, 1), True),
    ((2, 2), (3, 2), (1, 0), (2, 3), True),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 2), (1, 2), (1, 1), (2, 1), True),
    ((15, 17), (16, 5), (7, 8), (1, 1), False),
    ((16, 16), (16, 5), (8, 8), (1, 1), False),
]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooled_elements_are_exact(pool, dtype, format):
    """Values, offsets and what the offsets let through; ties between integers are many."""
    kernel, stride, padding, dilation, ceil_mode = pool
    shape = Shape(2, 6, (11, 13), 72, (3, 3), padding=(1, 1), groups=2)
    (x, w, b, y, _), _ = reference(shape, 1, True)
    y = y.clone().requires_grad_()
    expected, where = F.max_pool2d(
        y, kernel, stride, padding, dilation, ceil_mode, return_indices=True
    )
    numbers = shape.numbers(format == torch.channels_last)
    windows = int64s(*kernel, *stride, *padding, *dilation, *expected.shape[2:])
    xc, wc = (t.to(dtype).contiguous(memory_format=format) for t in (x, w))
    code = DTYPES.index(dtype)
    fits = threads().pools_by_fours(numbers, windows)
    assert fits == (kernel == (2, 2))
    packs = threads().pools_by_packs(code, numbers, windows)
    assert packs == (format == torch.channels_last)
    for fused, by_packs in [(0, 0), *([(1, 0)] * fits), *([(0, 1)] * packs)]:
        mine = unwritten(expected, dtype, format)
        kind, no_tap = (torch.int32, -1) if kernel[0] * kernel[1] > 255 else (torch.uint8, 255)
        offsets = torch.zeros(expected.shape, dtype=kind).contiguous(memory_format=format)
        tensors = xc, wc, b.to(dtype), mine, offsets
        call("pool_forward", fused, by_packs, code, numbers, windows, *tensors)
        assert torch.equal(mine, expected.to(dtype))
        rows, cols = (
            torch.arange(n).view(s) * st - p + tap * d
            for n, s, st, p, tap, d in zip(
                expected.shape[2:],
                ((-1, 1), (1, -1)),
                stride,
                padding,
                (offsets // kernel[1], offsets % kernel[1]),
                dilation,
                strict=True,
            )
        )
        passes = expected > 0
        assert torch.equal(offsets == no_tap, ~passes)
        assert torch.equal((rows * y.shape[3] + cols)[passes], where[passes])
        grad = integers(*expected.shape, dtype=torch.float64)
        masked = torch.where(passes, grad, 0)
        (right,) = torch.autograd.grad(expected, y, masked, retain_graph=True)
        grad_y = unwritten(y, dtype, format)
        gc = grad.to(dtype).contiguous(memory_format=format)
        call("pool_backward", by_packs, code, numbers, windows, gc, offsets, grad_y)
        assert torch.equal(grad_y, right.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "changes", "stride", "fits"),
    [
        (torch.bfloat16, {}, 2, True),
        (torch.bfloat16, {"o": 60}, 2, False),
        (torch.float32, {"o": 60}, 2, True),
        (torch.float64, {"o": 62}, 2, True),
        (torch.bfloat16, {}, 2**29 + 1, False),
        (torch.bfloat16, {"n": 2**40}, 2, True),
        (torch.bfloat16, {"hw": (2**15, 2**15)}, 2, True),
        (torch.bfloat16, {"hw": (2**16, 2**15)}, 2, False),
    ],
    ids=str,
)
def test_what_is_pooled_by_packs(dtype, changes, stride, fits):
    """Of channels that fill them, counted by 32 bits."""
    shape = replace(FITTING, **changes)
    pooled = (size // 2 if stride == 2 else 1 for size in shape.output())
    windows = int64s(2, 2, stride, stride, 0, 0, 1, 1, *pooled)
    numbers = shape.numbers(last=True)
    assert bool(threads().pools_by_packs(DTYPES.index(dtype), numbers, windows)) == fits
