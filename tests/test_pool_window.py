"""The windows of a pooling along one axis, all of the small ones against their definition."""

import ctypes
from itertools import product

import torch
import torch.nn.functional as F

from host import int64s, library


def axes():
    for size, kernel, stride, dilation in product(
        range(1, 9), range(1, 5), (1, 2, 3, 5), (1, 2, 3)
    ):
        for padding in range(kernel // 2 + 1):
            yield size, kernel, stride, padding, dilation


def output_size(axis, ceil_mode):
    function = library("pool_threads.cpp").pool_output_size
    function.restype = ctypes.c_int64
    return function(int64s(*axis), int(ceil_mode))


def test_output_size_is_native_s():
    for axis, ceil_mode in product(axes(), (False, True)):
        size, *windows = axis
        ours = output_size(axis, ceil_mode)
        try:
            native = F.max_pool1d(torch.zeros(1, 1, size), *windows, ceil_mode=ceil_mode).shape[-1]
        except RuntimeError:
            assert ours < 1, axis
        else:
            assert ours == native, axis


def test_windows_and_what_covers_a_position():
    for axis, ceil_mode in product(axes(), (False, True)):
        size, kernel, stride, padding, dilation = axis
        outputs = output_size(axis, ceil_mode)
        if outputs < 1:
            continue
        windows, taps, covering = (int64s(*[0] * n * m) for n, m in
                                   ((outputs, 3), (outputs, size), (size, 2)))  # fmt: skip
        most = library("pool_threads.cpp").pool_axis(
            int64s(*axis), ctypes.c_int64(outputs), windows, taps, covering
        )
        reads = [
            {o * stride - padding + t * dilation: t for t in range(kernel)} for o in range(outputs)
        ]
        for o in range(outputs):
            inside = {i: t for i, t in reads[o].items() if 0 <= i < size}
            begin, end, first = windows[3 * o : 3 * o + 3]
            walked = {i: first + n for n, i in enumerate(range(begin, end, dilation))}
            assert walked == inside, (axis, o)
            assert taps[o * size : (o + 1) * size] == [inside.get(i, -1) for i in range(size)]
        for i in range(size):
            covers = [o for o in range(outputs) if min(reads[o]) <= i <= max(reads[o])]
            begin, end = covering[2 * i : 2 * i + 2]
            assert list(range(begin, end)) == covers, (axis, i)
            assert len(covers) <= most
