"""Where instructions of AVX-512 and AMX are tried: emulated, and on a processor that has them."""

import ctypes

import numpy as np
import pytest

from host import AVX512, emulating, library, processor_has

FLAGS = {
    "emulated": (*emulating("amx"), "-O2"),
    "processor": (*AVX512, "-mavx512bf16"),
}
TILES = "-mamx-tile", "-mamx-bf16"
F32, F64, U8, U16, U32 = np.float32, np.float64, np.uint8, np.uint16, np.uint32
INF, NAN, SMALLEST = np.inf, np.nan, 2.0**-126

on_machines = pytest.mark.parametrize("machine", FLAGS)


def instructions(machine, tiles=False):
    """Those of emulation/semantics.cpp as a C library; of a processor with or without its tiles."""
    if machine == "processor" and not processor_has("avx512_bf16", "avx512vl"):
        pytest.skip("no AVX-512 with bfloat16 here")
    if machine == "processor" and tiles and not _has_amx():
        pytest.skip("no AMX here")
    more = TILES if machine == "processor" and tiles else ()
    return library("emulation/semantics.cpp", *FLAGS[machine], *more)


def _has_amx():
    if not processor_has("amx_bf16"):
        return False
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0  # Linux hands out tiles on request


def bits(x):
    return x.view({4: U32, 8: np.uint64}[x.itemsize])


def assert_same(got, expected):
    """Bit by bit, but for what a NaN carries."""
    if expected.dtype.kind == "f":
        nan = np.isnan(expected)
        assert (np.isnan(got) == nan).all(), (got, expected)
        got, expected = np.where(nan, 0, got), np.where(nan, 0, expected)
    assert got.tobytes() == expected.astype(got.dtype).tobytes(), (got, expected)
