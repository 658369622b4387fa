"""The functions of vectors that operators share, in every instruction set, emulated too."""

import ctypes
import math

import pytest
import torch

from host import AVX2, AVX512, ROOT, emulating, library, processor_has

FLAGS = {
    "avx2": (*AVX2, "-Wno-psabi"),
    "avx512": (*AVX512, "-Wno-psabi"),
    "emulated": (*emulating("avx512"), str(ROOT / "tests" / "emulation" / "tiles_amx.cpp")),
}
NEEDS = {"avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")}
DTYPES = [torch.float32, torch.float64]


def run(isa, name, x):
    if not processor_has("avx2", "fma", "f16c", *NEEDS.get(isa, ())):
        pytest.skip(f"no {isa} here")
    y = torch.empty_like(x)
    dtype = str(x.dtype).removeprefix("torch.")
    getattr(library("vectors.cpp", *FLAGS[isa]), f"apply_{dtype}")(
        ctypes.c_char(name[0].encode()),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(x.numel()),
        ctypes.c_void_p(y.data_ptr()),
    )
    return y


def units_in_the_last_place(y, exact):
    """Largest distance, in units of the exact result, known to more digits than y has."""
    rounded = exact.to(y.dtype)
    step = torch.nextafter(rounded.abs(), torch.full_like(rounded, torch.inf)) - rounded.abs()
    return ((y.double() - exact) / step).abs().max().item()


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestFunctions:
    @pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
    @pytest.mark.parametrize("reach", [1e-3, 1.0, 80.0])
    def test_within_units_of_the_last_place(self, name, reach, dtype, isa):
        """float64's reference has float64's own error, of less than a unit."""
        torch.manual_seed(0)
        x = ((torch.rand(10_001, dtype=torch.float64) * 2 - 1) * reach).to(dtype)
        most = {"exp": 1, "sigmoid": 3, "tanh": 3}[name] + (dtype == torch.float64)
        y = run(isa, name, x)
        assert units_in_the_last_place(y, getattr(torch, name)(x.double())) <= most

    def test_exp_at_the_ends(self, dtype, isa):
        """A result that would be subnormal is zero, one beyond the largest number infinite."""
        least, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
        inside = [math.log(least) + 0.1, math.log(most) - 0.1]
        outside = [math.log(least) - 0.1, -math.inf, math.log(most) + 0.1, math.inf, math.nan]
        y = run(isa, "exp", torch.tensor([*inside, *outside, 0.0, -0.0], dtype=dtype))
        assert (y[:2] > 0).all() and y[:2].isfinite().all()
        assert y[2:6].tolist() == [0, 0, math.inf, math.inf]
        assert y[6].isnan() and y[7:].tolist() == [1, 1]

    def test_ends_of_the_others(self, dtype, isa):
        x = torch.tensor([-math.inf, -1e30, -0.0, 0.0, 1e30, math.inf, math.nan], dtype=dtype)
        assert run(isa, "tanh", x)[:-1].tolist() == [-1, -1, 0, 0, 1, 1]
        assert run(isa, "sigmoid", x)[:-1].tolist() == [0, 0, 0.5, 0.5, 1, 1]
        assert run(isa, "tanh", x)[-1].isnan() and run(isa, "sigmoid", x)[-1].isnan()
        assert run(isa, "tanh", x)[2].signbit()

    def test_max_magnitude(self, dtype, isa):
        """With 1, twice: a NaN wins from either side, whatever its sign."""
        nan = torch.tensor(math.nan, dtype=dtype)
        x = torch.tensor([-2, -0.5, -0.0, 0, 1.5, -math.inf, math.inf], dtype=dtype)
        assert run(isa, "max_magnitude", x).tolist() == [2, 1, 1, 1, 1.5, math.inf, math.inf]
        assert run(isa, "max_magnitude", torch.stack([nan, -nan])).isnan().all()
