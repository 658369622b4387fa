"""Float32 products by TF32 tensor cores: their error, and the numbers that do not split."""

import ctypes
import math

import pytest
import torch

from host import library
from pyops.numerics import compare


def pointer(t):
    return ctypes.c_void_p(t.data_ptr())


def multiply(a, b, function="multiply", *how):
    out = torch.full((len(a), len(b)), torch.nan)
    sizes = map(ctypes.c_int64, (len(a), len(b), a.shape[1]))
    getattr(library("split_threads.cpp"), function)(*sizes, *how, *map(pointer, (a, b, out)))
    return out


def split(x):
    parts = (ctypes.c_float * 2)()
    library("split_threads.cpp").split(ctypes.c_float(x), parts)
    return tuple(parts)


DRAWS = {"normal": torch.randn, "positive": torch.rand}


def judge(kind, k, width, staying):
    """The rule for "highest"; native on a GPU adds one product after the other."""
    torch.manual_seed(0)
    a, b = DRAWS[kind](24, k), DRAWS[kind](20, k)
    ours = multiply(a, b, "multiply", width, int(staying))
    native = multiply(a, b, "multiply_in_a_chain")
    return compare(ours, native, a.double() @ b.double().t())


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("k", [8, 64, 1024, 4096, 16384])
def test_the_error_is_float32s(k, kind, width):
    """Whether a core adds four products at a time or eight; a long sum is far better."""
    verdict = judge(kind, k, width, staying=False)
    assert verdict.passed, verdict.reason
    assert k < 4096 or max(verdict.ratio_l2, verdict.ratio_max) < 0.5


@pytest.mark.parametrize("kind", DRAWS)
def test_sums_must_leave_the_tensor_core(kind):
    """There they drift to zero, a little at every step."""
    assert "error" in judge(kind, 16384, 8, staying=True).reason


def test_parts_are_a_number_of_eleven_bits_and_the_rest():
    torch.manual_seed(0)
    numbers = torch.randn(500) * torch.exp2(torch.randint(-58, 110, (500,)).float())
    edges = [0.0, 1.0, -1.0, 2 - 2**-23, 1 + 2**-11, 1 + 2**-12, 2.0**-60, 2.0**113]
    for x in [*numbers.tolist(), *edges]:
        big, small = split(x)
        bits = torch.tensor(big).view(torch.int32).item()
        assert bits & 0x1FFF == 0
        assert big + small == x
        assert abs(small) <= abs(x) * 2**-11


def test_what_overflows_or_underflows_is_not_split():
    fits = library("split_threads.cpp").fits
    for largest in (0.0, 2.0**-60, 1.0, 2.0**113):
        assert fits(ctypes.c_float(largest))
    for largest in (2.0**-149, 2.0**-61, 2.0**114, math.inf):
        assert not fits(ctypes.c_float(largest))


def test_the_way_without_tensor_cores():
    """Every lane meets its rows and columns; infinities and subnormals are as in float32."""
    torch.manual_seed(0)
    a, b, c = (torch.randint(-9, 10, s).float() for s in ((16, 8), (8, 8), (16, 8)))
    a[3, 2], a[7] = math.inf, a[7] * 2**-149
    b[2] = b[2].abs() + 1
    right = (c.double() + a.double() @ b.double()).float()
    library("split_threads.cpp").multiply_unsplit(*map(pointer, (a, b, c)))
    assert torch.equal(c, right) and c[3].isinf().all()
