"""What the threads of the CUDA kernels of linear layers compute, run by the CPU."""

import ctypes
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from host import int64s, library
from suite import DTYPES

SHAPES = [(1, 1, 1), (3, 5, 2), (64, 64, 16), (65, 63, 17), (5, 130, 40), (70, 3, 1), (4, 6, 0)]


def pointer(t):
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def integers(*shape, dtype):
    return torch.randint(-2, 3, shape).to(dtype)


def unwritten(*shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype)


def call(function, dtype, shape, *arguments):
    values = [a if isinstance(a, int) else pointer(a) for a in arguments]
    getattr(library("linear_threads.cpp"), function)(DTYPES.index(dtype), int64s(*shape), *values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_exact(shape, dtype):
    """Sums of small integers are, in any order: a wrong index shows, and so does a wrong mask."""
    torch.manual_seed(0)
    m, n, k = shape
    x, w, grad = (integers(*s, dtype=dtype) for s in ((m, k), (n, k), (m, n)))
    wide = [t.double() for t in (x, w)]
    for relu, bias in product((False, True), (None, integers(n, dtype=dtype))):
        y = unwritten(m, n, dtype=dtype)
        call("forward", dtype, shape, int(relu), x, w, bias, y)
        expected = F.linear(*wide, None if bias is None else bias.double())
        expected = F.relu(expected) if relu else expected
        assert torch.equal(y, expected.to(dtype))

        masked = grad.double() * (expected > 0 if relu else 1)
        gradients = (masked @ wide[1], masked.t() @ wide[0], masked.sum(0))
        for wanted in product((False, True), repeat=3):
            ours = [
                unwritten(*g.shape, dtype=dtype) if want else None
                for g, want in zip(gradients, wanted, strict=True)
            ]
            call("backward", dtype, shape, grad, y if relu else None, x, w, *ours)
            for mine, right in zip(ours, gradients, strict=True):
                assert mine is None or torch.equal(mine, right.to(dtype))


def test_nan_passes_the_relu_and_its_mask():
    """As native's: a NaN is not at most zero."""
    one = torch.ones(1, 1)
    y = unwritten(1, 1, dtype=torch.float32)
    call("forward", torch.float32, (1, 1, 1), 1, one * torch.nan, one, None, y)
    assert y.isnan().all()
    grad_x = torch.zeros(1, 1)
    call("backward", torch.float32, (1, 1, 1), one, y, one, one, grad_x, None, None)
    assert torch.equal(grad_x, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "parts"),
    [(1, 8, 1), (1023, 72, 1), (1024, 72, 2), (5000, 136, 9), (5131, 16, 10), (1100, 40000, 1)],
)
def test_the_columns_of_a_gradient_are_summed(rows, columns, parts, dtype):
    """In parts where they are few and tall, each row once: sums of small integers are exact."""
    torch.manual_seed(0)
    grad, sums = integers(rows, columns, dtype=dtype), unwritten(columns, dtype=dtype)
    threads = library("linear_threads.cpp")
    threads.sum_columns.restype = ctypes.c_int64
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(columns))
    found = threads.sum_columns(DTYPES.index(dtype), *sizes, pointer(grad), pointer(sums))
    assert found == parts
    assert torch.equal(sums, grad.double().sum(0).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_mask_of_packs_lets_pass_what_is_positive_and_a_nan(dtype):
    grad, y = (integers(5, 24, dtype=dtype) for _ in range(2))
    y[0, 3], y[1, 4], y[4, 23] = torch.nan, -0.0, torch.inf
    masked = unwritten(5, 24, dtype=dtype)
    sizes = (ctypes.c_int64(5), ctypes.c_int64(24))
    tensors = (pointer(t) for t in (grad, y, masked))
    library("linear_threads.cpp").mask(DTYPES.index(dtype), *sizes, *tensors)
    assert torch.equal(masked, torch.where(y <= 0, 0, grad))
