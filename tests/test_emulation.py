"""The emulated intrinsics of AVX-512's vectors against the manual, and against a processor.

Models are numpy's, lane by lane. Where the processor has all of them the same table is put to it.
"""

import ctypes
from itertools import product

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

I16, I32, I64 = np.int16, np.int32, np.int64
TINY, LARGEST = 1e-40, 3.4028235e38
MASKS = [0, 1, 0x8000, 0xFFFF, 0xA5C3, 0x12345678, 0xFFFFFFFF]


def run(machine, name, inputs, mask, like):
    """The 64 bytes it leaves, on memory of ones, as numbers of that kind."""
    out = np.full(64, 0xFF, U8)
    pointers = [np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p) for x in inputs]
    pointers += [None] * (3 - len(pointers))
    getattr(instructions(machine), name)(
        *pointers, ctypes.c_uint32(mask), out.ctypes.data_as(ctypes.c_void_p)
    )
    return out.view(like.dtype)[: like.size]


def draw(dtype, seed):
    """64 bytes of numbers: of every size, special ones among them."""
    rng = np.random.default_rng(seed)
    count = 64 // np.dtype(dtype).itemsize
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        x = rng.integers(limits.min, limits.max, count, dtype, endpoint=True)
        return np.where(rng.random(count) < 0.3, rng.choice([0, 1, limits.max], count), x).astype(
            dtype
        )
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count)
    special = [0.0, -0.0, 0.5, -1.5, 2.5, INF, -INF, NAN, TINY, -TINY, SMALLEST, LARGEST]
    return np.where(rng.random(count) < 0.4, rng.choice(special, count), x).astype(dtype)


def of_bits(function):
    return lambda *inputs: function(*map(bits, inputs)).view(inputs[0].dtype)


def second_unless(better):
    """What MAXPS and MINPS give: the second operand unless the first is better."""
    return lambda a, b: np.where(better(a, b), a, b)


def fused(sign):
    """Rounded once: to odd in float64, which the rounding to float32 then cannot see."""

    def model(a, b, c):
        x, y = a.astype(F64) * b, sign * c.astype(F64)
        total = x + y
        back = total - x
        lost = (x - (total - back)) + (y - back)
        even = (bits(total) & np.uint64(1)) == 0
        inexact = np.isfinite(lost) & (lost != 0)
        odd = np.where(inexact & even, np.nextafter(total, np.copysign(INF, lost)), total)
        return odd.astype(F32)

    return model


def add_pairs(sums, a, b):
    """sums + a·b for pairs of bfloat16, rounded twice; subnormals are zero."""

    def flush(x):
        return np.where(np.abs(x) < SMALLEST, np.copysign(F32(0), x), x)

    def numbers(x, odd):
        return flush((bits(x) & U32(0xFFFF0000) if odd else bits(x) << U32(16)).view(F32))

    for odd in (True, False):
        sums = flush(fused(1)(numbers(a, odd), numbers(b, odd), flush(sums)))
    return sums


def unpack(high):
    def model(a, b):
        each = 16 // a.itemsize  # within 128 bits
        pairs = np.stack([a.reshape(-1, each), b.reshape(-1, each)], -1)
        return pairs[:, each // 2 :].ravel() if high else pairs[:, : each // 2].ravel()

    return model


def mask_from(truths):
    return np.array(sum(int(t) << i for i, t in enumerate(truths)), f"u{max(1, len(truths) // 8)}")


def comparing(function):
    return lambda *inputs: mask_from(function(*inputs))


def enabled(mask, count):
    return np.array([mask >> i & 1 for i in range(count)], bool)


def to_bf16(x):
    u = bits(x).astype(np.uint64)
    rounded = u + 0x7FFF + (u >> 16 & 1)
    rounded = np.where(np.isnan(x), u | 0x400000, rounded)
    rounded = np.where(np.abs(x) < SMALLEST, u & 0x80000000, rounded)
    return (rounded >> 16).astype(U16)


def scalef(x, n):
    with np.errstate(all="ignore"):
        zero = x.dtype.type(0)
        usual = np.isfinite(n) & ~np.isnan(x)
        power = np.where(usual, np.clip(np.floor(n), -4000, 4000), 0)
        y = np.where(usual, np.ldexp(x, power.astype(I32)), x + n)
        y = np.where((n == INF) & ~np.isnan(x), x * n, y)
        y = np.where((n == -INF) & ~np.isnan(x), np.where(np.isinf(x), NAN, x * zero), y)
        return np.where(np.isnan(x) & np.isinf(n), np.where(n > 0, INF, 0), y).astype(x.dtype)


def fraction(x):
    """x - floor(x), rounded down as the floor is, and -0 for 0."""
    with np.errstate(all="ignore"):
        exact = x.astype(np.longdouble) - np.floor(x)
        y = exact.astype(F32)
        # What is too small for the difference's digits still says which way to round.
        high = (y > exact) | ((x < 0) & (x > -(2.0**-40)))
        y = np.where(high, np.nextafter(np.where(y == 1, F32(1), y), F32(-1)), y)
        return np.where(np.isinf(x), F32(0), np.where(y == 0, F32(-0.0), y)).astype(F32)


def halving(function):
    """Of GCC's header: the upper half goes first, within 128 bits the lower."""

    def model(x):
        while x.size > 1:
            low, high = np.split(x, 2)
            x = function(low, high) if x.nbytes <= 16 else function(high, low)
        return x

    return model


def two_sources(a, index, b):
    both, count = np.concatenate([a, b]), a.size
    return both[index.astype(I64) & (2 * count - 1)]


LANES = np.arange(16)
MAX, MIN = second_unless(np.greater), second_unless(np.less)
# name: the inputs' types, and what comes of them
TABLE = {
    "add_ps": ((F32, F32), np.add),
    "sub_ps": ((F32, F32), np.subtract),
    "mul_ps": ((F32, F32), np.multiply),
    "div_ps": ((F32, F32), np.divide),
    "max_ps": ((F32, F32), MAX),
    "min_ps": ((F32, F32), MIN),
    "and_ps": ((F32, F32), of_bits(np.bitwise_and)),
    "andnot_ps": ((F32, F32), of_bits(lambda a, b: ~a & b)),
    "or_ps": ((F32, F32), of_bits(np.bitwise_or)),
    "unpacklo_ps": ((F32, F32), unpack(False)),
    "unpackhi_ps": ((F32, F32), unpack(True)),
    "scalef_ps": ((F32, F32), scalef),
    "add_pd": ((F64, F64), np.add),
    "sub_pd": ((F64, F64), np.subtract),
    "mul_pd": ((F64, F64), np.multiply),
    "div_pd": ((F64, F64), np.divide),
    "max_pd": ((F64, F64), MAX),
    "min_pd": ((F64, F64), MIN),
    "and_pd": ((F64, F64), of_bits(np.bitwise_and)),
    "andnot_pd": ((F64, F64), of_bits(lambda a, b: ~a & b)),
    "or_pd": ((F64, F64), of_bits(np.bitwise_or)),
    "scalef_pd": ((F64, F64), scalef),
    "fmadd_ps": ((F32, F32, F32), fused(1)),
    "fmsub_ps": ((F32, F32, F32), fused(-1)),
    "fmadd_pd": ((F64, F64, F64), None),
    "and_si512": ((I32, I32), np.bitwise_and),
    "or_si512": ((I32, I32), np.bitwise_or),
    "add_epi32": ((I32, I32), np.add),
    "mullo_epi32": ((I32, I32), np.multiply),
    "max_epu32": ((U32, U32), np.maximum),
    "max_epu16": ((U16, U16), np.maximum),
    "unpacklo_epi16": ((U16, U16), unpack(False)),
    "unpackhi_epi16": ((U16, U16), unpack(True)),
    "permutexvar_epi16": ((U16, U16), lambda index, a: a[index & 31]),
    "cmpgt_epi16_mask": ((I16, I16), comparing(np.greater)),
    "cmpeq_epi16_mask": ((U16, U16), comparing(np.equal)),
    "cmpge_epu16_mask": ((U16, U16), comparing(np.greater_equal)),
    "cmpgt_epu16_mask": ((U16, U16), comparing(np.greater)),
    "cmpgt_epu32_mask": ((U32, U32), comparing(np.greater)),
    "test_epi64_mask": ((I64, I64), comparing(lambda a, b: a & b != 0)),
    "testn_epi8_mask": ((U8, U8), comparing(lambda a, b: a[:16] & b[:16] == 0)),
    "slli_epi32": ((U32,), lambda a: a << 16),
    "srli_epi32": ((U32,), lambda a: a >> 16),
    "set1_ps": ((F32,), lambda a: a[:1].repeat(16)),
    "set1_pd": ((F64,), lambda a: a[:1].repeat(8)),
    "set1_epi32": ((I32,), lambda a: a[:1].repeat(16)),
    "set1_epi16": ((I16,), lambda a: a[:1].repeat(32)),
    "setr_epi32": ((), lambda: np.arange(16, dtype=I32)),
    "set_epi16": ((), lambda: np.arange(32, dtype=I16)),
    "castsi512_si256": ((I32,), lambda a: a[:8]),
    "castps512_ps256": ((F32,), lambda a: a[:8]),
    "castpd512_pd256": ((F64,), lambda a: a[:4]),
    "zextps128_ps512": ((F32,), lambda a: np.where(LANES < 4, a, F32(0))),
    "zextpd256_pd512": ((F64,), lambda a: np.where(LANES[:8] < 4, a, 0)),
    "extract_low": ((I32,), lambda a: a[:8]),
    "extract_high": ((I32,), lambda a: a[8:]),
    "extract_low_ps": ((F32,), lambda a: a[:8]),
    "extract_high_ps": ((F32,), lambda a: a[8:]),
    "extract_low_pd": ((F64,), lambda a: a[:4]),
    "extract_high_pd": ((F64,), lambda a: a[4:]),
    "i32gather_ps": ((F32, I32), None),
    "less_ps": ((F32, F32), comparing(np.less)),
    "greater_ps": ((F32, F32), comparing(np.greater)),
    "not_less_equal_ps": ((F32, F32), comparing(lambda a, b: ~(a <= b))),
    "unordered_ps": ((F32, F32), comparing(lambda a, b: np.isnan(a) | np.isnan(b))),
    "less_pd": ((F64, F64), comparing(np.less)),
    "greater_pd": ((F64, F64), comparing(np.greater)),
    "not_less_equal_pd": ((F64, F64), comparing(lambda a, b: ~(a <= b))),
    "unordered_pd": ((F64, F64), comparing(lambda a, b: np.isnan(a) | np.isnan(b))),
    "shuffle_ps": (
        (F32, F32),
        lambda a, b: np.where(LANES % 4 < 2, a[LANES ^ 2], b[LANES ^ 2]),
    ),
    "shuffle_f32x4": (
        (F32, F32),
        lambda a, b: np.concatenate([a[4:8], a[12:], b[:4], b[8:12]]),
    ),
    "pick_smaller_ps": ((F32, F32), MIN),
    "pick_smaller_pd": ((F64, F64), MIN),
    "permutex2var_ps": ((F32, I32, F32), two_sources),
    "permutex2var_epi16": ((U16, U16, U16), two_sources),
    "cvtepu16_epi32": ((U16,), lambda a: a[:16].astype(I32)),
    "cvtepu8_epi32": ((U8,), lambda a: a[:16].astype(I32)),
    "cvtepu8_epi64": ((U8,), lambda a: a[:8].astype(I64)),
    "cvtepi32_epi16": ((I32,), lambda a: a.astype(I16)),
    "cvtph_ps": ((U16,), lambda a: a[:16].view(np.float16).astype(F32)),
    "cvtps_ph": ((F32,), lambda a: a.astype(np.float16)),
    "cvtneps_pbh": ((F32,), to_bf16),
    "cvtne2ps_pbh": ((F32, F32), lambda a, b: to_bf16(np.concatenate([b, a]))),
    "dpbf16_ps": ((F32, F32, F32), add_pairs),
    "roundscale_ps": ((F32,), np.round),
    "roundscale_pd": ((F64,), np.round),
    "reduce_ps": ((F32,), fraction),
    "reduce_add_ps": ((F32,), halving(np.add)),
    "reduce_add_pd": ((F64,), halving(np.add)),
    "reduce_max_ps": ((F32,), halving(MAX)),
    "reduce_max_pd": ((F64,), halving(MAX)),
    "reduce_max_epu32": ((U32,), lambda a: a.max(keepdims=True)),
}
del TABLE["fmadd_pd"], TABLE["i32gather_ps"]  # have tests of their own


def keep(zero):
    """Lanes of the last input where the mask is set, zero or the first input's elsewhere."""

    def model(mask, *inputs):
        other = np.zeros_like(inputs[0]) if zero else inputs[0]
        return np.where(enabled(mask, other.size), inputs[-1], other)

    return model


def narrow_where(mask, x):
    kept = x.astype(U8)
    return np.where(enabled(mask, x.size), kept, 0xFF).astype(U8)


def stored(mask, x):
    ones = np.full(64, 0xFF, U8).view(x.dtype)[: x.size]
    return np.where(enabled(mask, x.size), x, ones)


def expand(mask, x):
    at = enabled(mask, x.size)
    y = np.zeros_like(x)
    y[at] = x[: at.sum()]
    return y


def first(count, model):
    return lambda mask, x: model(mask, x[:count])


MASKED = {
    "maskz_loadu_ps": ((F32,), keep(True)),
    "maskz_loadu_pd": ((F64,), keep(True)),
    "maskz_loadu_epi16": ((U16,), keep(True)),
    "half_maskz_loadu_epi16": ((U16,), first(16, keep(True))),
    "quarter_maskz_loadu_epi8": ((U8,), first(16, keep(True))),
    "mask_storeu_ps": ((F32,), stored),
    "mask_storeu_pd": ((F64,), stored),
    "mask_storeu_epi16": ((U16,), stored),
    "half_mask_storeu_epi16": ((U16,), first(16, stored)),
    "mask_cvtepi32_storeu_epi8": ((I32,), narrow_where),
    "mask_cvtepi64_storeu_epi8": ((I64,), narrow_where),
    "mask_mov_ps": ((F32, F32), keep(False)),
    "mask_mov_pd": ((F64, F64), keep(False)),
    "mask_mov_epi32": ((I32, I32), keep(False)),
    "maskz_mov_ps": ((F32,), keep(True)),
    "maskz_mov_pd": ((F64,), keep(True)),
    "maskz_mov_epi16": ((U16,), keep(True)),
    "mask_permutexvar_epi16": (
        (U16, U16, U16),
        lambda mask, other, index, a: np.where(enabled(mask, 32), a[index & 31], other),
    ),
    "mask_max_ps": (
        (F32, F32, F32),
        lambda mask, other, a, b: np.where(enabled(mask, 16), MAX(a, b), other),
    ),
    "maskz_expand_ps": ((F32,), expand),
}


@on_machines
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:divide")
@pytest.mark.parametrize("name", TABLE)
def test_lanes(name, machine):
    types, model = TABLE[name]
    for seed in range(40):
        inputs = [draw(dtype, 3 * seed + i) for i, dtype in enumerate(types)]
        expected = np.atleast_1d(np.asarray(model(*inputs)))
        assert_same(run(machine, name, inputs, 0, expected), expected)


@on_machines
@pytest.mark.parametrize("name", MASKED)
def test_masked_lanes(name, machine):
    types, model = MASKED[name]
    for mask, seed in product(MASKS, range(4)):
        inputs = [draw(dtype, 3 * seed + i) for i, dtype in enumerate(types)]
        expected = model(mask, *inputs)
        assert_same(run(machine, name, inputs, mask, expected), expected)


@on_machines
@pytest.mark.parametrize(("name", "exponents"), [("scalef_ps", -149), ("scalef_pd", -1074)])
def test_scaling_to_a_subnormal_rounds_once(name, exponents, machine):
    dtype = F32 if name.endswith("ps") else F64
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(64 // dtype().itemsize).astype(dtype)
        n = rng.integers(exponents - 2, exponents + 60, x.size).astype(dtype)
        expected = scalef(x, n)
        assert_same(run(machine, name, [x, n], 0, expected), expected)


@on_machines
def test_a_gather_may_go_backwards(machine):
    x, index = np.arange(16, dtype=F32), np.arange(16, dtype=I32)[::-1].copy()
    assert_same(run(machine, "i32gather_ps", [x, index], 0, x), x[::-1])


@on_machines
def test_a_product_is_not_rounded_before_the_sum(machine):
    a = np.full(8, 1 + 2.0**-30)
    product_less_one = run(machine, "fmadd_pd", [a, a, np.full(8, -1 - 2.0**-29)], 0, a)
    assert (product_less_one == 2.0**-60).all()
