"""The emulated tiles of AMX against the manual and a processor, and what either refuses."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from instructions import (
    F32,
    F64,
    INF,
    NAN,
    SMALLEST,
    U8,
    U16,
    U32,
    assert_same,
    bits,
    instructions,
    on_machines,
)


def configuration(m=16, k=32, n=16, **changed):
    """Tiles 0, 4 and 6 for (m, k) times (k, n) bfloat16, as LDTILECFG reads them."""
    config = np.zeros((), [("palette", U8), ("pad", U8, 15), ("colsb", U16, 16), ("rows", U8, 16)])
    config["palette"] = 1
    for tile, rows, row_bytes in ((0, m, 4 * n), (4, m, 2 * k), (6, k // 2, 4 * n)):
        config["rows"][tile], config["colsb"][tile] = rows, row_bytes
    for name, value in changed.items():
        config[name] = value
    return config.tobytes()


def pairs(x, rows):
    """Tile bytes of bfloat16 numbers that are given as float32."""
    tile = np.full((16, 32), 0x7FC0, U16)
    tile[:rows, : x.shape[1]] = bits(x) >> 16
    return tile


def by_the_manual(a, b, c):
    """TDPBF16PS of numbers whose sums float64 holds: even and odd pairs apart, then together."""
    chains = np.zeros((2, *c.shape), F32)
    for p in range(a.shape[1]):
        term = a[:, p, None].astype(F64) * b[p].astype(F64)
        chains[p % 2] = (chains[p % 2].astype(F64) + term).astype(F32)
    return c + (chains[0] + chains[1])


def multiply(machine, a, b, c):
    m, k, n = *a.shape, b.shape[1]
    right = np.ascontiguousarray(b.reshape(k // 2, 2, n).swapaxes(1, 2)).reshape(k // 2, 2 * n)
    sums = np.full((16, 16), NAN, F32)
    sums[:m, :n] = c
    tiles = pairs(a, m), pairs(right, k // 2), sums
    pointers = [t.ctypes.data_as(ctypes.c_void_p) for t in tiles]
    instructions(machine, tiles=True).multiply_tiles(configuration(m, k, n), *pointers)
    assert np.isnan(sums[m:]).all() and np.isnan(sums[:, n:]).all()
    return sums[:m, :n]


@on_machines
@pytest.mark.parametrize("shape", [(16, 32, 16), (1, 32, 16), (16, 2, 16), (5, 6, 7), (16, 32, 1)])
def test_tiles(shape, machine):
    m, k, n = shape
    rng = np.random.default_rng(m + k + n)

    def numbers(*size):
        x = (rng.standard_normal(size) * 2.0 ** rng.integers(-3, 4, size)).astype(F32)
        return (bits(x) & U32(0xFFFF0000)).view(F32)

    a, b, c = numbers(m, k), numbers(k, n), rng.standard_normal((m, n)).astype(F32)
    assert_same(multiply(machine, a, b, c), by_the_manual(a, b, c))


@on_machines
def test_tiles_take_a_denormal_for_zero(machine):
    a, b, c = np.zeros((16, 32), F32), np.zeros((32, 16), F32), np.zeros((16, 16), F32)
    a[0], b[0] = 2.0**-127, 2.0**100  # an operand,
    a[1, :2], b[1] = 2.0**-90, 2.0**-60  # a product,
    c[2] = 2.0**-130  # and a sum
    a[3], c[3] = 0, SMALLEST
    expected = np.zeros_like(c)
    expected[1] = a[1, 0] * b[0]
    expected[3] = SMALLEST
    assert_same(multiply(machine, a, b, c), expected)


@on_machines
def test_tiles_pass_on_what_is_not_finite(machine):
    a, b, c = (np.ones(s, F32) for s in ((16, 32), (32, 16), (16, 16)))
    a[0, 3], a[1, 5], a[2, :2] = NAN, INF, (INF, -INF)
    got = multiply(machine, a, b, c)
    assert np.isnan(got[0]).all() and (got[1] == INF).all() and np.isnan(got[2]).all()
    assert (got[3:] == 33).all()


MISUSES = {
    "before _tile_loadconfig": (0, {}),
    "a configuration of palette 1": (1, {"palette": 2}),
    "a reserved byte": (1, {"pad": [0] * 14 + [1]}),
    "a tile too large": (1, {"rows": 17}),
    "without rows or columns": (1, {"colsb": 0}),
    "the configuration lacks": (4, {}),
    "in two places": (2, {"rows": [16] * 8 + [0] * 8, "colsb": [64] * 8 + [0] * 8}),
    "shapes do not fit": (
        3,
        {"rows": [16, 8] + [16] * 6 + [0] * 8, "colsb": [64] * 8 + [0] * 8},
    ),
    "an aligned access": (5, {}),
    "after _tile_release": (6, {}),
}


@pytest.mark.parametrize("message", MISUSES)
def test_what_a_processor_refuses_ends_the_program(message):
    how, changed = MISUSES[message]
    built = instructions("emulated")
    config = configuration(**changed)
    call = f"import ctypes; ctypes.CDLL({built._name!r}).misuse({how}, {config!r})"
    ended = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert ended.returncode < 0
    assert message in ended.stderr
