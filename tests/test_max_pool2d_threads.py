"""What the threads of the CUDA kernels of max_pool2d compute, run by the CPU: bits and bounds."""

import ctypes
import itertools

import pytest
import torch

from host import int64s, library
from suite import DTYPES
from test_max_pool2d import bits, specials

ELEMENT, STRIPS, CHANNELS, WINDOWS, TEAMS = range(5)
ARGMAX = {None: 0, torch.uint8: 1, torch.int64: 2}
SQUARES = [(2, 2), (3, 2), (3, 1), (4, 1)]
SIZES = [(1, 2), (4, 5), (7, 3), (8, 9), (13, 10)]
GUARD = 64  # elements before and after what a kernel may write


class Guarded:
    """Memory to write, between two bands that must stay as they are."""

    def __init__(self, like):
        self.all = torch.full((like.numel() + 2 * GUARD,), 77).to(like.dtype)
        self.pointer = self.all.data_ptr() + GUARD * like.element_size()
        self.like = like

    def tensor(self):
        """What was written, in the shape and strides of `like`."""
        assert (self.all[:GUARD] == 77).all() and (self.all[-GUARD:] == 77).all()
        return self.all[GUARD:-GUARD].as_strided(self.like.shape, self.like.stride())


def call(function, way, x, y, windows, argmax, channels_last, *pointers):
    sizes = int64s(*x.shape, *y.shape[2:], *(v for v in windows for _ in range(2)))
    pointers = [ctypes.c_void_p(p) for p in pointers]
    dtype = DTYPES.index(x.dtype)
    taken = getattr(library("pool_threads.cpp"), function)(
        way, sizes, dtype, argmax, int(channels_last), *pointers
    )
    return bool(taken)


def compare(way, x, windows, where_dtype, ceil_mode=False):
    """Whether the way takes the call; if so, both directions are the CPU kernels', bit by bit."""
    channels_last = way == CHANNELS or not x.is_contiguous()
    kernel, stride, padding, dilation = ([v] * 2 for v in windows)
    forward = (x, kernel, stride, padding, dilation, ceil_mode)
    ops = torch.ops.pyops
    taps = where_dtype == torch.uint8
    y, where = (ops.max_pool2d_with_taps if taps else ops.max_pool2d_with_indices)(*forward)
    ours, ours_where = Guarded(y), Guarded(where)
    argmax = ARGMAX[where_dtype]
    pointers = (x.data_ptr(), ours.pointer, ours_where.pointer)
    if not call("pool", way, x, y, windows, argmax, channels_last, *pointers):
        return False
    assert torch.equal(bits(ours.tensor()), bits(y))
    if where_dtype is None:
        assert (ours_where.all == 77).all()
        return True
    assert torch.equal(ours_where.tensor(), where)
    grad = torch.randn_like(y)
    expected = ops.max_pool2d_backward(
        grad, where, x.shape[2:], kernel, stride, padding, dilation, channels_last
    )
    grad_x = Guarded(x)
    pointers = (grad.data_ptr(), where.data_ptr(), grad_x.pointer)
    way = WINDOWS if way == TEAMS else way
    assert call("gather", way, x, y, windows, argmax, channels_last, *pointers)
    assert torch.equal(bits(grad_x.tensor()), bits(expected))
    return True


def inputs(channels, size, dtype, format):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).to(dtype)
    return [t.to(memory_format=format) for t in (x, specials(x))]


def fits(size, kernel, padding):
    return min(size) + 2 * padding >= kernel


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), SQUARES)
@pytest.mark.parametrize("way", [STRIPS, CHANNELS], ids=["strips", "channels"])
def test_unrolled_windows(way, kernel, stride, dtype):
    format = torch.channels_last if way == CHANNELS else torch.contiguous_format
    for size in SIZES:
        for padding in (p for p in range(kernel // 2 + 1) if fits(size, kernel, p)):
            for x in inputs(16, size, dtype, format):
                for ceil_mode in (False, True):
                    for argmax in (None, torch.uint8):
                        windows = (kernel, stride, padding, 1)
                        assert compare(way, x, windows, argmax, ceil_mode), (size, padding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("argmax", ARGMAX, ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_any_window(format, argmax, dtype):
    for windows in [(1, 1, 0, 1), (2, 3, 1, 1), (3, 2, 1, 2), (5, 1, 2, 1), (2, 1, 1, 3)]:
        for x in inputs(3, (9, 11), dtype, format):
            assert compare(ELEMENT, x, windows, argmax)


ANY = [(1, 1, 0, 1), (2, 1, 1, 1), (3, 3, 0, 1), (5, 2, 2, 1), (7, 1, 3, 1), (2, 4, 1, 1)]
DILATED = [(3, 2, 1, 2), (2, 1, 1, 3), (3, 4, 1, 2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("argmax", ARGMAX, ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_windows_told_at_run_time(format, argmax, dtype):
    for windows, size in itertools.product(ANY + DILATED, ((7, 9), (13, 8))):
        for x in inputs(8, size, dtype, format):
            for ceil_mode in (False, True):
                assert compare(WINDOWS, x, windows, argmax, ceil_mode), (windows, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("argmax", ARGMAX, ids=str)
def test_large_windows(argmax, dtype):
    """By teams, down to taps fewer than a team's lanes in a row and outputs of a part of one."""
    cases = [((9, 9), (8, 8, 0, 1)), ((13, 40), (13, 13, 6, 1)), ((20, 17), (8, 5, 3, 2))]
    for size, windows in cases:
        for x in inputs(2, size, dtype, torch.contiguous_format):
            for ceil_mode in (False, True):
                assert compare(TEAMS, x, windows, argmax, ceil_mode), (windows, size)


@pytest.mark.parametrize("windows", [(7, 7, 0, 1), (8, 3, 0, 1)], ids=["small", "overlapping"])
def test_what_no_team_takes(windows):
    x = torch.randn(1, 2, 20, 20)
    assert not compare(TEAMS, x, windows, None)
    assert compare(WINDOWS, x, windows, None)


@pytest.mark.parametrize(
    ("windows", "argmax", "channels", "offset"),
    [
        ((3, 3, 0, 1), torch.uint8, 16, 0),
        ((3, 2, 1, 2), torch.uint8, 16, 0),
        ((3, 2, 1, 1), torch.int64, 16, 0),
        ((3, 2, 1, 1), torch.uint8, 9, 0),
        ((3, 2, 1, 1), torch.uint8, 16, 1),
    ],
    ids=["another stride", "dilated", "indices", "channels", "not aligned"],
)
def test_what_is_not_unrolled_is_left_to_the_general_kernel(windows, argmax, channels, offset):
    shape = (2, channels, 9, 9)
    memory = torch.randn(2 * channels * 81 + offset)[offset:]
    rows = memory.view(shape)
    pixels = memory.view(2, 9, 9, channels).permute(0, 3, 1, 2)
    assert not compare(CHANNELS, pixels, windows, argmax)
    fits = channels == 16 and offset == 0
    assert compare(WINDOWS, pixels, windows, argmax) == fits
    if fits:
        assert not compare(STRIPS, rows, windows, argmax)
    assert compare(ELEMENT, pixels, windows, argmax)
