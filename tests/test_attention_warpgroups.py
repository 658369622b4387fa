"""What the warpgroups of the Hopper kernels of attention compute, run by threads of the CPU."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from host import cuda_flags, int64s, library
from layouts import guarded
from suite import HALF
from test_attention_threads import Call, pointer, rows, unwritten

# B, H, G, L, S, D, E: lengths around tiles of 64, 128 and 192, columns that fill a box or do not.
SHAPES = [
    (1, 1, 1, 1, 1, 64, 64),
    (2, 4, 2, 127, 129, 64, 64),
    (1, 2, 1, 193, 64, 128, 128),
    (1, 1, 1, 65, 448, 128, 128),
    (1, 2, 2, 130, 63, 40, 8),
    (1, 1, 1, 64, 192, 72, 128),
    (1, 1, 1, 449, 65, 64, 64),
]
# Of odd and of even numbers of keys, whose masks are read by ones and by twos.
MASKED_SHAPES = [
    (2, 4, 2, 127, 129, 64, 64),
    (1, 2, 1, 193, 64, 128, 128),
    (1, 2, 2, 130, 62, 40, 8),
    (1, 1, 1, 65, 448, 72, 128),
]
MASKS = ["none", "causal", "bool", "float", "row", "key", "head", "padding", "odd", "transposed"]


class WarpgroupCall(Call):
    """A call that the kernels take, with what the forward leaves to the backward."""

    def draw_mask(self, kind, b, h):
        """Nobody may read beside it."""
        if kind == "padding":  # the last keys of each batch
            lengths = torch.randint(1, self.s + 1, (b, 1, 1, 1))
            return guarded(torch.arange(self.s) < lengths)
        if kind == "odd":  # rows that begin at odd numbers
            return guarded(torch.randn(b, h, self.l, self.s + 1).to(self.dtype))[..., 1:]
        if kind == "transposed":
            return guarded(torch.randn(1, h, self.s, self.l).to(self.dtype)).transpose(2, 3)
        mask = super().draw_mask(kind, b, h)
        return None if mask is None else guarded(mask)

    def expected(self):
        """As the kernels, none of a mask."""
        return super().expected()[:4]

    def run_forward(self):
        threads = library("attention_warpgroups.cpp")
        self.out = unwritten(self.grad)
        self.row_max, self.row_scale = (unwritten(self.out[..., 0], torch.float32) for _ in "ms")
        statistics = pointer(self.row_max), pointer(self.row_scale)
        self.taken = threads.forward(*self.words(), rows(self.out), *statistics)
        return self.out

    def run(self, wide=None):
        out = self.run_forward()
        threads = library("attention_warpgroups.cpp")
        b, h, _, n, *_ = self.shape
        sums = torch.full((threads.row_sums(b, h, n),), torch.nan)
        grads = [unwritten(t) for t in (self.q, self.k, self.v)]
        tensors = [rows(out), rows(self.grad), pointer(self.row_max), pointer(self.row_scale)]
        self.taken &= threads.backward(
            *self.words(), *tensors, *map(rows, grads), int64s(*[0] * 5), pointer(sums)
        )
        return out, *grads


def right_statistics(call):
    """Maximum and 1/sum of each row, from float64."""
    shared = call.q.shape[1] // call.k.shape[1]
    k = call.k.double().repeat_interleave(shared, 1)
    scores = call.q.double() @ k.mT * call.scale
    if call.causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores.masked_fill_(~seen, -torch.inf)
    highest = scores.amax(-1)
    return highest, 1 / (scores - highest[..., None]).exp().sum(-1)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_and_dropout(kind, dropout_p):
    """Output and gradients of every broadcast, against float64 and the CPU's bits of dropout."""
    for dtype, shape in zip(2 * HALF, MASKED_SHAPES, strict=True):
        call = WarpgroupCall(shape, dtype, kind, dropout_p)
        call.check(wide=None)
        assert call.taken


@pytest.mark.parametrize("n", [64, 128])
def test_dropout_keeps_what_it_keeps_elsewhere(n):
    """Forward and backward, bit by bit: equal weights show in columns of their own."""
    call = WarpgroupCall((2, 2, 1, n, n, n, n), torch.bfloat16, dropout_p=0.4)
    call.q.zero_()
    call.v.copy_(torch.eye(n))
    call.grad.copy_(torch.eye(n))
    kept = torch.ops.pyops.attention_dropout(call.seed, call.p, (2, 2, n, n))
    out, _, _, grad_v = call.run()
    assert torch.equal(out != 0, kept)
    assert torch.equal(grad_v != 0, kept.any(1, keepdim=True).mT)


def test_dropout_of_everything():
    call = WarpgroupCall((1, 1, 1, 70, 70, 64, 64), torch.float16, "causal", dropout_p=1.0)
    assert not any(t.any() for t in call.run())


def test_rows_without_keys_are_zero():
    call = WarpgroupCall((1, 2, 2, 5, 70, 64, 64), torch.bfloat16, "bool")
    out, grad_q, *_ = call.run()
    assert not out[:, :, 2].any() and not grad_q[:, :, 2].any()
    assert not call.row_scale[:, :, 2].any() and call.row_max.isfinite().all()


def test_nan_in_a_mask_stays_in_its_row():
    call = WarpgroupCall((1, 1, 1, 70, 65, 64, 64), torch.bfloat16, "head")
    call.mask[0, 0, 69, 64] = torch.nan
    out, grad_q, *_ = call.run()
    for rows_ in (out, grad_q):
        assert rows_[:, :, 69].isnan().all() and rows_[:, :, :69].isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["none", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_right(shape, kind, dtype):
    call = WarpgroupCall(shape, dtype, kind)
    call.check(wide=None)
    assert call.taken
    for mine, right in zip((call.row_max, call.row_scale), right_statistics(call), strict=True):
        assert_close(mine.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "causal"])
def test_small_integers_are_exact(kind):
    """One key has all the weight: outputs and grad_v are sums of integers, exact in any order."""

    def draw(sizes):
        return torch.randint(-2, 3, sizes).float()

    call = WarpgroupCall((1, 2, 1, 200, 200, 64, 64), torch.bfloat16, kind, draw=draw)
    call.q.fill_(64)
    call.k.zero_()
    chosen = 7 if kind == "none" else 0  # a key that every query sees
    call.k[:, :, chosen] = 1
    out, _, _, grad_v = call.run()
    assert torch.equal(out, call.v[:, :, chosen : chosen + 1].expand_as(out))
    expected = torch.zeros_like(call.v)
    expected[:, 0, chosen] = call.grad.float().sum((0, 1, 2)).to(call.v.dtype)
    assert torch.equal(grad_v, expected)


@pytest.mark.parametrize("kind", ["none", "causal", "row"])
@pytest.mark.parametrize("level", [-90, 90, -3000, 3000])
def test_scores_beyond_the_range_of_exp(kind, level):
    """All of a row's scores near `level`: the keys that only fill a tile weigh nothing.

    In column 0, the level's own, gradients of the scores cancel, down to their rounding.
    """
    call = WarpgroupCall((1, 1, 1, 70, 64 + 128, 64, 64), torch.bfloat16, kind)
    call.q[..., 0] = 8
    call.k[..., 0] = level / call.scale / 8
    for mine, right in zip(call.run(), call.expected(), strict=True):
        assert mine.isfinite().all()
        difference = mine.double() - right
        assert difference[..., 1:].norm() <= 0.02 * right[..., 1:].norm()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(poison):
    call = WarpgroupCall((1, 1, 1, 130, 130, 64, 64), torch.bfloat16, "causal")
    call.k[0, 0, 100, 3] = poison
    finite = call.run_forward()[0, 0].isfinite()
    assert finite[:100].all()
    # A score of -inf is no key.
    expected = call.q[0, 0, 100:, 3] < 0 if poison == torch.inf else torch.zeros(30)
    assert torch.equal(finite[100:], expected.bool()[:, None].expand_as(finite[100:]))


def test_scores_of_minus_infinity_are_no_keys():
    """The maximum stays the lowest number, and no weight is NaN."""
    call = WarpgroupCall((1, 1, 1, 3, 5, 64, 64), torch.bfloat16)
    call.q[:] = 1
    call.k[..., 0] = -torch.inf
    out = call.run_forward()
    assert not out.any() and not call.row_scale.any()


def test_what_tma_cannot_load_is_refused():
    for change in ("odd stride", "offset", "mask", "scale", "expanded", "columns"):
        sizes = (1, 2, 2, 8, 8, 64, 64) if change != "columns" else (1, 2, 2, 8, 8, 60, 64)
        kind = "float32" if change == "mask" else "none"
        call = WarpgroupCall(sizes, torch.bfloat16, kind)
        if change == "odd stride":
            call.q = torch.randn(1, 2, 8, 65).bfloat16()[..., :64]
        elif change == "offset":
            call.v = torch.randn(1, 2, 8, 72).bfloat16()[..., 4:68]
        elif change == "expanded":
            call.k = call.k[:, :1].expand(-1, 2, -1, -1)
        elif change == "scale":
            call.scale = 0.0
        call.run_forward()
        assert not call.taken, change


def test_a_dimension_of_one_has_no_stride():
    call = WarpgroupCall((1, 1, 1, 70, 70, 64, 64), torch.bfloat16)
    call.q = call.q.as_strided(call.q.shape, (1, 3, *call.q.stride()[2:]))
    call.check(wide=None)
    assert call.taken


def test_every_pair_of_lengths_near_a_tile():
    """Causal, masked or not: which tiles are visited, and which of their scores count."""
    lengths = (1, 63, 64, 65, 128, 129)
    for n, s, kind in product(lengths, lengths, ("none", "causal", "bool")):
        WarpgroupCall((1, 1, 1, n, s, 64, 64), torch.float16, kind).check(wide=None)


def test_tiles_lie_as_the_hardware_lays_them():
    """CuTe's layouts against TMA's boxes and swizzle, and against the threads' registers."""
    tiles = library("warpgroup_tiles.cpp", *cuda_flags())
    assert tiles.tiles_agree() and tiles.registers_agree()
