"""What only a GPU can show of attention: its kernels beside the scalar one and themselves."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from pyops.numerics import compare
from test_cuda import HOPPER

f = pyops.functional
pytestmark = pytest.mark.cuda


ATTENTION_MASKS = ["none", "causal", "bool", "float", "row", "row, no gradient", "dropout"]


def attend(kind, q, k, v, mask):
    torch.manual_seed(0)
    p = 0.25 if kind == "dropout" else 0.0
    return f.scaled_dot_product_attention(
        q, k, v, mask, dropout_p=p, is_causal=kind == "causal", enable_gqa=True
    )


def attention_inputs(kind, dtype, d=40):
    """Four query heads to two of keys; lengths that fill no tile; no stride the contiguous one."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, n, h, d, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
        for n, h in ((70, 4), (131, 2), (131, 2))
    )
    mask = None
    if kind == "bool":
        mask = torch.rand(2, 1, 70, 131, device="cuda") < 0.7
        mask[:, :, 3] = False
    elif kind in ("float", "row", "row, no gradient"):
        rows = 70 if kind == "float" else 1
        mask = torch.randn(2, 4, rows, 131, device="cuda", dtype=dtype)
        mask.requires_grad_(kind != "row, no gradient")
    return q, k, v, mask


def gradients(out, inputs):
    torch.manual_seed(1)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    return torch.autograd.grad(out, wanted, torch.randn_like(out))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ATTENTION_MASKS)
@pytest.mark.parametrize("d", [24, 40, 130])
def test_attention_is_the_scalar_kernels(d, kind, dtype):
    """Output and gradients against the CPU's float64, dropout by the same seed."""
    inputs = attention_inputs(kind, dtype, d)
    seed = torch.tensor(0x0123456789ABCDEF) if kind == "dropout" else None
    p = 0.25 if kind == "dropout" else 0.0
    floats = [t for t in inputs if t is not None and t.requires_grad]

    def run(q, k, v, mask, seed, grad_out):
        out, *_ = torch.ops.pyops.attention_forward(
            q, k, v, mask, seed, p, kind == "causal", None, False
        )
        leaves = [t for t in (q, k, v, mask) if t is not None and t.requires_grad]
        return out, *torch.autograd.grad(out, leaves, grad_out)

    grad_out = torch.randn(2, 4, 70, d, device="cuda", dtype=dtype)
    with pyops.explain() as log:
        mine = run(*inputs, None if seed is None else seed.cuda(), grad_out)
    is_half = dtype in (torch.bfloat16, torch.float16)
    way = {torch.float64: "cuda", torch.float32: "3xtf32_cuda"}.get(dtype, "tensorop_cuda")
    ways = (way, way) if d == 40 else ("cuda", "cuda")
    if HOPPER and is_half and d != 130:
        ways = "sm90", ways[1] if kind in ("float", "row") else "sm90"  # gradients of masks
    assert [c.kernel for c in log.calls] == [
        f"attention_forward_{ways[0]}",
        f"attention_backward_{ways[1]}",
    ]

    def widen(t):
        if t is None:
            return None
        wide = t.detach().cpu()
        return wide.double().requires_grad_(t.requires_grad) if t.is_floating_point() else wide

    right = run(*map(widen, inputs), seed, grad_out.cpu().double())
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 1e-2}.get(dtype, 6e-2)
    assert len(mine) == 1 + len(floats)
    for ours, theirs in zip(mine, right, strict=True):
        noise = tolerance * (1 + theirs.detach().abs().max().item())
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=tolerance, atol=noise)


@pytest.mark.parametrize("precision", ["highest", "high"], indirect=True)
@pytest.mark.parametrize("kind", ["none", "causal", "sharp", "unsplit"])
@pytest.mark.parametrize("d", [64, 128])
def test_attention_in_float32_on_tensor_cores(d, kind, precision):
    """Beside native's composite, which the same switch moves: scores of up to 80, tiny values."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, d, device="cuda") for n in (333, 500, 500))
    q *= 20 if kind == "sharp" else 1
    v *= 2.0**-120 if kind == "unsplit" else 1
    with pyops.explain() as log:
        ours = f.scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")
    way = "tf32_cuda" if precision != "highest" else "3xtf32_cuda" if d == 64 else "cuda"
    assert [c.kernel for c in log.calls] == [f"attention_forward_{way}"]
    inputs = (tuple(t.to(dtype) for t in (q, k, v)) for dtype in (torch.float32, torch.float64))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        native, right = (
            F.scaled_dot_product_attention(*x, is_causal=kind == "causal") for x in inputs
        )
    verdict = compare(ours, native, right, terms=500)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ATTENTION_MASKS)
def test_attention_gives_the_same_bits_again(kind, dtype):
    inputs = attention_inputs(kind, dtype)
    out = attend(kind, *inputs)
    first = out, *gradients(out, inputs)
    for _ in range(20):
        out = attend(kind, *inputs)
        for a, b in zip(first, (out, *gradients(out, inputs)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("lengths", [(1, 300), (64, 192), (449, 65), (3000, 500), (300, 9000)])
def test_attention_by_warpgroups(lengths, d, is_causal, dtype):
    """The last two give a block of the grid several tiles, of queries or of keys."""
    torch.manual_seed(0)
    sizes = ((2, 6, lengths[0]), (2, 2, lengths[1]), (2, 2, lengths[1]))
    q, k, v = (torch.randn(*n, d, device="cuda", dtype=dtype, requires_grad=True) for n in sizes)
    with pyops.explain() as log:
        out = f.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
        mine = out, *gradients(out, (q, k, v))
    kernels = [f"attention_{direction}_sm90" for direction in ("forward", "backward")]
    assert [c.kernel for c in log.calls] == kernels
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = F.scaled_dot_product_attention(*wide, is_causal=is_causal, enable_gqa=True)
    torch.manual_seed(1)
    grad_out = torch.randn_like(mine[0]).double()
    right = out, *torch.autograd.grad(out, wide, grad_out)
    for ours, theirs in zip(mine, right, strict=True):
        # A query that sees one key has no gradient, but for what float32 rounds off.
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm() + 1e-3


@pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["none", "padding", "bias", "odd bias"])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("lengths", [(449, 64), (300, 3001), (3000, 700)])
def test_masks_by_warpgroups(lengths, d, kind, dropout_p):
    """Against the general kernels, dropout by the same seed."""
    torch.manual_seed(0)
    (n, s), options = lengths, dict(device="cuda", dtype=torch.bfloat16)
    q, grad = (torch.randn(2, 6, n, d, **options) for _ in "qg")
    k, v = (torch.randn(2, 2, s, d, **options) for _ in "kv")
    mask = {
        "none": None,
        "padding": torch.rand(2, 1, 1, s, device="cuda") < 0.7,
        "bias": torch.randn(1, 6, n, s, **options),
        "odd bias": torch.randn(2, 1, n, s + 1, **options)[..., 1:],
    }[kind]
    seed = torch.tensor(7, device="cuda") if dropout_p else None
    rest = dropout_p, False, None

    def run():
        inputs, wanted = (q, k, v, mask, seed), [True, True, True, False]
        results = torch.ops.pyops.attention_forward(*inputs, *rest, False)
        grads = torch.ops.pyops.attention_backward(grad, *inputs, *results, *rest, wanted)
        return *results, *grads[:3]

    with pyops.explain() as log:
        mine = run()
    kernels = [f"attention_{direction}_sm90" for direction in ("forward", "backward")]
    assert [c.kernel for c in log.calls] == kernels
    with pyops.isa_cap("sm_80"):
        right = run()
    for ours, theirs in zip(mine, right, strict=True):
        assert (ours.double() - theirs.double()).norm() <= 0.02 * theirs.double().norm() + 1e-3


def test_attention_dropout_is_the_cpus():
    seed = torch.tensor(7)
    draw = torch.ops.pyops.attention_dropout
    assert torch.equal(draw(seed.cuda(), 0.3, [3, 130]).cpu(), draw(seed, 0.3, [3, 130]))
