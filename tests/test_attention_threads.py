"""What the blocks of the CUDA kernels of attention compute, run by the CPU."""

import ctypes
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from host import int64s, library
from pyops.numerics import compare, err_l2, settle
from suite import DTYPES, HALF

# B, H, G, L, S, D, E: tails of every tile (32 or 64), of a chunk (64 or 128) and of 16 bytes.
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, 37, 65, 8, 12),
    (1, 2, 1, 65, 63, 17, 130),
    (1, 2, 2, 64, 127, 72, 5),
    (1, 3, 1, 130, 31, 130, 64),
    (1, 1, 1, 3, 5, 0, 4),
]
# The same for what tensor cores take: tiles of 32 keys or 64, of 64 queries or 128.
TENSOR_SHAPES = [(2, 4, 2, 37, 65, 40, 33), (1, 1, 1, 130, 129, 128, 72), (1, 2, 1, 1, 3, 32, 64)]
TENSOR_CORES, TF32 = 0, -1  # for a width of chunks
MASKS = ["none", "causal", "bool", "float", "row", "key", "head", "float32", "batch"]
INT64S = ctypes.POINTER(ctypes.c_int64)


def rows(t):
    """Address and strides, the columns' left out."""
    return int64s(t.data_ptr(), *t.stride()[:3])


def broadcast(t):
    return [0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]


def mask_words(mask):
    if mask is None:
        return int64s(*[0] * 7)
    if mask.dtype == torch.bool:
        return int64s(1, 0, mask.data_ptr(), *broadcast(mask))
    return int64s(2, DTYPES.index(mask.dtype), mask.data_ptr(), *broadcast(mask))


def pointer(t):
    return ctypes.c_void_p(t.data_ptr())


def unwritten(t, dtype=None):
    return torch.full(t.shape, torch.nan, dtype=dtype or t.dtype)


class Call:
    """One call's inputs and what the blocks make of them."""

    def __init__(self, shape, dtype, kind="none", dropout_p=0.0, draw=torch.randn, seed=0):
        torch.manual_seed(seed)
        b, h, g, self.l, self.s, d, e = shape
        self.shape, self.dtype, self.p, self.causal = shape, dtype, dropout_p, kind == "causal"
        self.scale = 1.0 if draw is not torch.randn else (d or 1) ** -0.5
        # Rows that lie apart, and heads behind them: no stride is the contiguous one.
        sizes = ((b, self.l, h, d), (b, self.s, g, d), (b, self.s, g, e), (b, self.l, h, e))
        self.q, self.k, self.v, self.grad = (
            draw(sizes_).to(dtype).transpose(1, 2) for sizes_ in sizes
        )
        self.mask = self.draw_mask(kind, b, h)
        self.seed = torch.tensor(0x0123456789ABCDEF)

    def draw_mask(self, kind, b, h):
        if kind in ("none", "causal"):
            return None
        if kind == "bool":
            mask = torch.rand(b, 1, self.l, self.s) < 0.7
            mask[:, :, self.l // 2] = False  # a row that sees nothing
            return mask
        sizes = {
            "row": (b, h, 1, self.s),
            "key": (1, h, self.l, 1),
            "head": (b, 1, self.l, self.s),
            "batch": (1, 1, 1, 1),
        }.get(kind, (b, h, self.l, self.s))
        mask = torch.randn(sizes).to(torch.float32 if kind == "float32" else self.dtype)
        if kind == "float":
            mask[..., self.l // 2, :] = -torch.inf
            mask[..., 0, :] = torch.finfo(mask.dtype).min
        return mask

    def words(self):
        sizes = int64s(DTYPES.index(self.dtype), *self.shape, int(self.causal))
        seed = ctypes.cast(pointer(self.seed), INT64S) if self.p else None
        tensors = map(rows, (self.q, self.k, self.v))
        scale, p = ctypes.c_double(self.scale), ctypes.c_double(self.p)
        return sizes, scale, p, seed, mask_words(self.mask), *tensors

    def forward(self, wide):
        """Output, row_max and row_scale, as the blocks compute them."""
        out = unwritten(self.grad)
        sums = torch.float64 if self.dtype == torch.float64 else torch.float32
        row_max, row_scale = (unwritten(out[..., 0], sums) for _ in range(2))
        results = rows(out), pointer(row_max), pointer(row_scale)
        library("attention_threads.cpp").forward(wide, *self.words(), *results)
        return out, row_max, row_scale

    def run(self, wide):
        """Output and the gradients of q, k, v and a float mask, as the blocks compute them."""
        threads = library("attention_threads.cpp")
        out, row_max, row_scale = self.forward(wide)
        dot, sums = torch.full_like(row_max, torch.nan), row_max.dtype
        grads = [unwritten(t) for t in (self.q, self.k, self.v)]
        grad_mask = None
        mask_gradient = int64s(*[0] * 5)
        if self.mask is not None and self.mask.is_floating_point():
            grad_mask = torch.full(self.mask.shape, torch.nan, dtype=sums)
            mask_gradient = int64s(grad_mask.data_ptr(), *broadcast(grad_mask))
        tensors = [rows(out), rows(self.grad), pointer(row_max), pointer(row_scale)]
        threads.backward(
            wide, *self.words(), *tensors, *map(rows, grads), mask_gradient, pointer(dot)
        )
        return out, *grads, *([] if grad_mask is None else [grad_mask])

    def expected(self):
        """The same by PyTorch's composite on float64."""
        inputs = [t.detach().double().requires_grad_() for t in (self.q, self.k, self.v)]
        mask = self.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.double().requires_grad_()
            inputs.append(mask)
        elif mask is not None:
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        kept = None
        if self.p:
            size = (*self.q.shape[:3], self.s)
            kept = torch.ops.pyops.attention_dropout(self.seed, self.p, size)
        out = torch.ops.aten._scaled_dot_product_attention_math(
            *inputs[:3], mask, self.p, self.causal, kept, scale=self.scale, enable_gqa=True
        )[0]
        return out, *torch.autograd.grad(out, inputs, self.grad.double(), materialize_grads=True)

    def check(self, wide):
        tolerance = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 1e-2}
        rounded = torch.float16 if wide == TF32 else self.dtype  # to as many bits
        limit = tolerance.get(rounded, 6e-2)
        for mine, right in zip(self.run(wide), self.expected(), strict=True):
            largest = right.abs().max().item() if right.numel() else 0
            # What a mask is broadcast along cancels, down to the rounding of `out`.
            terms = max(1, self.grad[..., 0].numel() * self.s / max(1, mine.numel()))
            noise = limit * (1 + largest) * terms**0.5
            assert_close(mine.double(), right.detach(), rtol=limit, atol=noise)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_mask_and_gradient(shape, kind, dtype):
    if kind == "float" and torch.finfo(dtype).min < -1e300:
        kind = "head"  # finfo.min of float64 drowns the scores, which is native's way too
    Call(shape, dtype, kind).check(wide=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wide_chunks_and_dropout(shape, dtype):
    for kind in ("causal", "row"):
        Call(shape, dtype, kind, dropout_p=0.3).check(wide=2)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_on_tensor_cores(kind, dtype):
    """The forward, and gradients from what it saved."""
    for shape in TENSOR_SHAPES:
        for dropout_p in (0.0, 0.3):
            Call(shape, dtype, kind, dropout_p).check(TENSOR_CORES)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float", "head"])
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 260, 200, 64, 64), (1, 1, 1, 140, 270, 104, 64)], ids=str
)
def test_tiles_on_tensor_cores(shape, kind):
    """Several tiles of owners and of others; reading shared memory never waits for a bank."""
    Call(shape, torch.bfloat16, kind, dropout_p=0.3).check(TENSOR_CORES)
    assert library("attention_threads.cpp").conflicts_met() == 0


@pytest.mark.parametrize("d", [64, 128])
def test_gradients_draw_the_dropout_of_all(d):
    """Of each gradient, whose factors tell the scores apart."""
    call = Call((1, 2, 2, d, d, d, d), torch.bfloat16, dropout_p=0.5)
    kept = torch.ops.pyops.attention_dropout(call.seed, call.p, (1, 2, d, d))
    apart = torch.eye(d).expand_as(call.q)
    call.q.zero_(), call.k.copy_(apart), call.grad.copy_(apart)
    grad_v = call.run(TENSOR_CORES)[3]
    assert torch.equal(grad_v, kept.mT.to(call.dtype) * 2 / d)  # of weights 1/d, twice as large
    call.v.fill_(1), call.grad.fill_(1)
    grad_q = call.run(TENSOR_CORES)[1]
    assert torch.equal(grad_q > 0, kept)
    call.q.copy_(apart), call.k.zero_()
    grad_k = call.run(TENSOR_CORES)[2]
    assert torch.equal(grad_k.mT > 0, kept)
    call.mask = torch.zeros(1, 2, d, d)
    assert torch.equal(call.run(TENSOR_CORES)[4] > 0, kept)


@pytest.mark.parametrize("kind", MASKS)
def test_by_tf32(kind):
    """Roundings to 11 bits, of all factors and of the weights."""
    for shape in TENSOR_SHAPES:
        call = Call(shape, torch.float32, kind, dropout_p=0.3)
        mine, right = call.forward(TF32)[0], call.expected()[0].detach()
        assert err_l2(mine, right) < 2**-10, err_l2(mine, right)
        call.check(TF32)


@pytest.mark.parametrize("by_columns", [0, 1])
def test_a_warp_meets_every_bank_once(by_columns):
    """In rows that are 16 bytes longer than 64 or 128 floats."""
    met = library("attention_threads.cpp").banks_met
    assert [met(stride, by_columns) for stride in (68, 132)] == [32, 32]
    assert met(64, by_columns) < 32


def draw_scores(kind, call):
    """Scores of about 1, of up to 80, or of numbers 30 times as large that cancel."""
    if kind == "sharp":
        call.q *= 20
    elif kind == "cancelling":
        half = call.q.shape[-1] // 2
        call.q *= 30
        call.k[..., half:] = call.k[..., :half]
        call.q[..., half:] = torch.randn_like(call.q[..., half:]) - call.q[..., :half]


def beside_native(call, wide=TENSOR_CORES):
    """Output and gradients, by three products of TF32 or of blocks, beside native's composite."""

    def native(dtype):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (call.q, call.k, call.v)]
        out = torch.ops.aten._scaled_dot_product_attention_math(
            *inputs, None, 0.0, call.causal, scale=call.scale
        )[0]
        return out, *torch.autograd.grad(out, inputs, call.grad.to(dtype))

    results = zip(call.run(wide), native(call.dtype), native(torch.float64), strict=True)
    names = "out", "grad_q", "grad_k", "grad_v"
    return {
        name: compare(*three, direction="forward" if name == "out" else "backward", terms=call.s)
        for name, three in zip(names, results, strict=True)
    }


@pytest.mark.parametrize("kind", ["ordinary", "sharp", "cancelling"])
@pytest.mark.parametrize("d", [64, 128])
def test_three_products_of_tf32_are_float32(d, kind):
    """The rule for "highest"."""

    def verdicts(draw):
        call = Call((1, 2, 2, 64, 500, d, d), torch.float32, seed=draw)
        draw_scores(kind, call)
        return beside_native(call)

    for name, verdict in settle(verdicts).items():
        assert verdict.passed, (name, verdict.reason)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["none", "causal"])
def test_sharp_rows_of_half_precision(kind, dtype):
    """Of a row that one key has almost alone, all but the rounding of its sum would cancel."""

    def verdicts(draw):
        call = Call((1, 2, 2, 130, 130, 8, 8), dtype, kind, seed=draw)
        draw_scores("sharp", call)
        return beside_native(call, wide=1)

    for name, verdict in settle(verdicts).items():
        assert verdict.passed, (name, verdict.reason)


@pytest.mark.parametrize(
    "scales",
    [(-70, 70, 0, 0), (115, -115, 0, 0), (0, 0, -120, 0), (0, 0, 122, -60), (0, 0, 60, 60)],
    ids=str,
)
def test_numbers_that_do_not_split(scales):
    """Large and small ones, their products, infinities and NaN: as native has them."""
    call = Call((1, 1, 1, 40, 70, 64, 64), torch.float32)
    for t, power in zip((call.q, call.k, call.v, call.grad), scales, strict=True):
        t *= 2.0**power
    for name, verdict in beside_native(call).items():
        assert verdict.passed, (name, verdict.reason)
    call.q[0, 0, 3, 5], call.q[0, 0, 17, 6] = torch.inf, torch.nan
    call.v[0, 0, 4, 7], call.v[0, 0, 66, 8] = torch.inf, torch.nan
    verdict = beside_native(call)["out"]
    assert not verdict.fault, verdict.fault


def test_small_lengths_are_right():
    """Every pair of lengths around a thread's keys and a tile."""
    for n, s, causal in product((1, 2, 15, 16, 17, 33), (1, 3, 16, 31, 33, 49), (False, True)):
        kind = "causal" if causal else "none"
        Call((1, 2, 1, n, s, 3, 5), torch.float64, kind, dropout_p=0.2).check(wide=1)


def test_rows_without_keys_are_zero():
    call = Call((1, 2, 2, 5, 70, 8, 8), torch.float32, "bool")
    out, grad_q, *_ = call.run(wide=1)
    assert not out[:, :, 2].any() and not grad_q[:, :, 2].any()


def test_nan_and_large_scores():
    """NaN stays in its row; scores beyond exp's range leave the largest alone."""
    call = Call((1, 1, 1, 3, 66, 4, 4), torch.float32)
    call.q[0, 0, 1, 2] = torch.nan
    out, *_ = call.run(wide=1)
    assert out[0, 0, 1].isnan().all() and out[0, 0, ::2].isfinite().all()
    call.q.fill_(100)
    call.k.copy_(torch.arange(66.0).view(1, 1, 66, 1))
    out, *_ = call.run(wide=1)
    assert torch.equal(out, call.v[:, :, 65:].expand_as(out))
