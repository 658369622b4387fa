"""What the warpgroups of the Hopper kernel of pooled convolutions compute, run by the CPU."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from host import int64s, library
from suite import DTYPES, HALF
from test_conv2d_threads import FITTING, Shape, pointer, reference, unwritten

LAST = torch.channels_last
# Channels that fill a step or not, outputs that fill a tile or not, kernels of all reaches, more
# images than patches, results that end within a patch; of each kind of tile weights that stay in
# shared memory and weights that come again.
SHAPES = [
    Shape(1, 8, (2, 2), 8, (1, 1)),
    Shape(3, 32, (16, 8), 64, (3, 3), padding=(1, 1)),
    Shape(2, 40, (35, 19), 24, (3, 3), padding=(1, 1)),
    Shape(1, 72, (9, 21), 136, (2, 5), padding=(1, 3)),
    Shape(2, 16, (7, 9), 72, (7, 1), padding=(3, 0)),
    Shape(1, 64, (18, 12), 64, (3, 2), padding=(4, 2), dilation=(3, 2)),
    Shape(1, 136, (5, 33), 264, (1, 3)),
    Shape(5, 24, (6, 6), 8, (5, 5), padding=(2, 2)),
    Shape(3, 40, (10, 9), 136, (3, 3), padding=(1, 1)),
    Shape(1, 72, (17, 9), 200, (1, 1)),
    Shape(2, 136, (9, 9), 64, (3, 3)),
]
# Kernel, stride, padding, dilation and ceil mode of the pooling.
TWO = ((2, 2), (2, 2), (0, 0), (1, 1), False)
POOLS = [
    TWO,
    ((2, 2), (2, 2), (1, 1), (1, 1), True),
    ((3, 3), (3, 3), (1, 0), (1, 1), False),
    ((4, 2), (5, 2), (2, 1), (1, 1), True),
    ((2, 2), (3, 4), (1, 1), (2, 3), True),
    ((1, 1), (1, 1), (0, 0), (1, 1), False),
    ((16, 8), (16, 8), (8, 4), (1, 1), True),
    ((2, 3), (40, 9), (1, 1), (1, 1), True),
]


def sizes_of(shape, pool):
    """Of the pooled result."""
    kernel, stride, padding, dilation, ceil_mode = pool
    like = torch.empty(1, 1, *shape.output(), device="meta")
    return F.max_pool2d(like, kernel, stride, padding, dilation, ceil_mode).shape[2:]


def windows_of(shape, pool):
    """The pooling as the C library has it."""
    kernel, stride, padding, dilation, _ = pool
    return int64s(*kernel, *stride, *padding, *dilation, *sizes_of(shape, pool))


class Call:
    """A pooled convolution of small integers, exact in any order."""

    def __init__(self, shape, pool=TWO, dtype=torch.bfloat16, with_bias=True):
        self.shape, self.pool, self.dtype = shape, pool, dtype
        (x, w, b, *_), _ = reference(shape, 1, with_bias)
        self.x, self.w = (t.to(dtype).contiguous(memory_format=LAST) for t in (x, w))
        self.bias = b.to(dtype) if with_bias else None

    def expected(self):
        """The maxima, and where they are, of a convolution in float64 that is rounded."""
        wide = [t if t is None else t.double() for t in (self.x, self.w, self.bias)]
        y = F.relu(F.conv2d(*wide, **self.shape.options())).to(self.dtype)
        return F.max_pool2d(y.double().contiguous(), *self.pool, return_indices=True)

    def run(self, last=True):
        """Whether the kernel takes the call."""
        like = torch.empty(self.shape.n, self.shape.o, *sizes_of(self.shape, self.pool))
        self.y = unwritten(like, self.dtype, LAST)
        self.offsets = torch.full_like(self.y, 254, dtype=torch.uint8)  # no tap
        tensors = map(pointer, (self.x, self.w, self.bias, self.y, self.offsets))
        numbers, windows = self.shape.numbers(last), windows_of(self.shape, self.pool)
        threads = library("conv2d_pool_warpgroups.cpp")
        return bool(threads.forward(DTYPES.index(self.dtype), numbers, windows, *tensors))

    def indices(self):
        """Where the offsets say that the maxima are."""
        (_, kernel_w), stride, padding, dilation, _ = self.pool
        taps = self.offsets.long() // kernel_w, self.offsets.long() % kernel_w
        rows, cols = (
            torch.arange(n).view(view) * s - p + tap * d
            for n, view, s, p, tap, d in zip(
                self.y.shape[2:], ((-1, 1), (1, -1)), stride, padding, taps, dilation, strict=True
            )
        )
        return rows * self.shape.output()[1] + cols

    def check(self):
        """Values and offsets, exactly."""
        assert self.run()
        expected, where = self.expected()
        right = expected.to(self.dtype)
        torch.testing.assert_close(self.y, right, rtol=0, atol=0, equal_nan=True)
        passes = ~(expected <= 0)  # as does a NaN
        assert torch.equal(self.offsets == 255, ~passes)
        assert torch.equal(self.indices()[passes], where[passes])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_exact(shape, dtype):
    """A wrong index shows; ties between integers are many."""
    for with_bias in (True, False):
        Call(shape, TWO, dtype, with_bias).check()


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_windows_of_all_kinds(pool):
    Call(Shape(2, 16, (21, 19), 40, (3, 3), padding=(2, 2)), pool).check()


def test_every_size_near_a_patch():
    """Which windows a patch has, which of them count, and how many patches there are."""
    for height, width in product((1, 2, 3, 15, 16, 17, 18, 33), (1, 2, 7, 8, 9, 10, 17)):
        pool = ((2, 2), (2, 2), (1, 1), (1, 1), (height + width) % 2 == 0)
        Call(Shape(1, 8, (height, width), 8, (1, 1)), pool).check()


@pytest.mark.parametrize(("dtype", "level"), [(HALF[0], 300), (HALF[1], 3000)], ids=str)
def test_maxima_that_are_equal_when_rounded(dtype, level):
    """The first of them wins, whatever it was before."""
    call = Call(Shape(2, 16, (18, 20), 16, (3, 3), padding=(1, 1)), TWO, dtype)
    call.bias.fill_(level)
    call.check()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_not_finite(dtype):
    """The last NaN of a window; of zeros with a sign none."""
    call = Call(Shape(2, 16, (18, 20), 16, (1, 1)), TWO, dtype)
    call.w = call.w.abs() + 1
    call.x[:, :, :, ::3] = -0.0
    for value in (torch.nan, torch.inf, -torch.inf):
        call.x[torch.rand(call.x.shape) < 0.01] = value
    call.check()
    assert 0.1 < call.y.isnan().float().mean() < 0.9 and call.y.isinf().any()


@pytest.mark.parametrize(
    ("changes", "pool", "fits"),
    [
        ({}, TWO, True),
        ({"c": 8, "o": 8}, TWO, True),
        ({"c": 60}, TWO, False),
        ({"o": 60}, TWO, False),
        ({"groups": 2}, TWO, False),
        ({"stride": (2, 1)}, TWO, False),
        ({"stride": (1, 2)}, TWO, False),
        ({"k": (7, 39)}, TWO, True),
        ({"k": (8, 3)}, TWO, False),
        ({"k": (3, 3), "dilation": (3, 9)}, TWO, True),
        ({"k": (3, 3), "dilation": (4, 1)}, TWO, False),
        ({"n": 2**28}, TWO, False),
        ({"n": 2**10, "hw": (2**9, 2**9), "c": 2**10}, TWO, True),
        ({"n": 1, "hw": (1, 2**30 + 8), "k": (1, 1)}, ((1, 2), *TWO[1:]), False),
        ({"n": 1, "hw": (2**15, 2**15), "c": 2**9}, TWO, False),
        ({}, ((3, 3), (2, 2), (1, 1), (1, 1), False), False),
        ({}, ((3, 3), (3, 3), (1, 1), (1, 1), False), True),
        ({}, ((5, 5), (5, 5), (0, 0), (1, 1), False), False),
        ({}, ((2, 2), (2, 2), (0, 0), (2, 1), False), False),
        ({}, ((2, 9), (2, 9), (0, 0), (1, 1), False), False),
        ({}, ((17, 2), (17, 2), (0, 0), (1, 1), False), False),
    ],
)
def test_what_is_taken(changes, pool, fits):
    shape = replace(FITTING, **changes)
    code = DTYPES.index(torch.bfloat16)
    takes = library("conv2d_pool_warpgroups.cpp").takes
    assert bool(takes(code, shape.numbers(last=True), windows_of(shape, pool))) == fits
    assert not takes(code, shape.numbers(last=False), windows_of(shape, pool))
    assert not takes(DTYPES.index(torch.float32), shape.numbers(last=True), windows_of(shape, pool))


def test_unaligned_tensors_are_refused():
    for name in ("x", "w"):
        call = Call(Shape(2, 8, (6, 6), 8, (3, 3)))
        tensor = getattr(call, name)
        odd = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        setattr(call, name, odd.as_strided(tensor.shape, tensor.stride()).copy_(tensor))
        assert not call.run()
