"""What only a GPU can show: which kernel serves what, and that it is exact or close."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import pyops
from pyops.numerics import compare

f = pyops.functional
pytestmark = pytest.mark.cuda

NHWC = torch.channels_last


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
HALF_LINEAR = "linear_{}_sm90" if HOPPER else "linear_{}_tensorop_cuda"


@pytest.fixture
def precision(request):
    """Of float32 products, as `torch.set_float32_matmul_precision` has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("kernel", "dtype", "precision"),
    [
        (HALF_LINEAR, torch.bfloat16, "highest"),
        (HALF_LINEAR, torch.float16, "high"),
        ("linear_{}_tf32_cuda", torch.float32, "high"),
        ("linear_{}_3xtf32_cuda", torch.float32, "highest"),
    ],
    ids=str,
    indirect=["precision"],
)
@pytest.mark.parametrize("rows", [200, 3001])
def test_linear_runs_on_tensor_cores(rows, kernel, dtype, precision):
    """Small integers: exact in every order, so that a wrong tile, bias or mask shows."""
    x, w, b, grad = (
        torch.randint(-1, 2, shape, device="cuda").to(dtype).requires_grad_()
        for shape in ((rows, 72), (136, 72), (136,), (rows, 136))
    )
    with pyops.explain() as log:
        y = f.linear_relu(x, w, b)
        gradients = torch.autograd.grad(y, (x, w, b), grad)
    assert [c.kernel for c in log.calls] == [kernel.format("forward"), kernel.format("backward")]
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.relu(F.linear(*wide))
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(
        gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True
    ):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize("depth", [72, 1024, 16384])
@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**60])
def test_float32_on_tensor_cores_is_float32(depth, scale):
    """The rule for "highest"; a column of infinities, of NaN and of subnormals as native has it."""
    torch.manual_seed(0)
    x, w = (torch.randn(s, depth, device="cuda") * scale for s in (200, 136))
    x[3, 5], x[4, 6], x[5] = math.inf, math.nan, x[5] * 2.0**-60
    with pyops.explain() as log:
        y = f.linear(x, w)
    assert [c.kernel for c in log.calls] == ["linear_forward_3xtf32_cuda"]
    native = F.linear(x, w)
    verdict = compare(y, native, F.linear(x.double(), w.double()), terms=depth)
    assert verdict.passed, verdict.reason
    torch.testing.assert_close(y[5], native[5], rtol=1e-5, atol=0)


def network(kind, dtype):
    """A stacked network both ways, its packed input, and a call for results and all gradients."""
    module = getattr(pyops.nn, kind)(16, 24, num_layers=2, bidirectional=True)
    module = module.to("cuda", dtype)
    sequences = [torch.randn(n, 16, device="cuda", dtype=dtype) for n in (9, 7, 7, 2)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences)

    def run(data):
        y, state = module(packed._replace(data=data))
        states = state if kind == "LSTM" else (state,)
        outputs = (y.data, *states)
        total = sum(t.square().sum() for t in outputs)
        return *outputs, *torch.autograd.grad(total, [data, *module.parameters()])

    return packed.data.requires_grad_(), run, module


def resident(direction, dtype):
    """The kernel of all steps of a layer that fits the GPU."""
    if dtype != torch.bfloat16:
        return f"rnn_{direction}_resident_cuda"
    hopper = torch.cuda.get_device_capability() == (9, 0) and direction == "backward"
    return f"rnn_{direction}_resident_" + ("sm90" if hopper else "tensorop_cuda")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recurrent_layers_on_packed_sequences(kind, dtype):
    data, run, module = network(kind, dtype)
    with pyops.explain() as log:
        mine = run(data)
    assert [c.kernel for c in log.calls] == [
        resident(direction, dtype) for direction in ("forward", "backward") for _ in range(4)
    ]
    module.double()
    right = run(data.detach().double().requires_grad_())
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for a, b in zip(mine, right, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_launch_for_all_steps(kind, dtype):
    """As the layer in float64 gives it; twice the same; replayed in a graph."""
    module = getattr(pyops.nn, kind)(40, 200, bidirectional=True).to("cuda", dtype)
    x = torch.randn(12, 9, 40, device="cuda", dtype=dtype, requires_grad=True)

    def run():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pyops.explain() as log:
        mine = run()
    assert [c.kernel for c in log.calls] == [
        resident(direction, dtype) for direction in ("forward", "backward") for _ in range(2)
    ]
    for again, first in zip(run(), mine, strict=True):
        assert torch.equal(again, first)
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed, _ = module(x)
        graph.replay()
    assert torch.equal(replayed, mine[0])
    native = getattr(torch.nn, kind)(40, 200, bidirectional=True).to("cuda", torch.float64)
    native.load_state_dict(module.state_dict())
    wide = x.detach().double().requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        y, _ = native(wide)
    right = (y, *torch.autograd.grad(y.square().sum(), [wide, *native.parameters()]))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for a, b in zip(mine, right, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_stacked_layers_are_a_wavefront(kind):
    """The same as layer by layer, to the last bit; in another stream, and replayed in a graph."""
    module = getattr(pyops.nn, kind)(40, 64, num_layers=3, dropout=0.5).to("cuda").eval()
    x = torch.randn(150, 9, 40, device="cuda", requires_grad=True)

    def run():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pyops.explain() as log:
        mine = run()
    backwards = ["rnn_backward_resident_cuda"] * 3
    assert [c.kernel for c in log.calls] == ["rnn_forward_wavefront_cuda", *backwards]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = run()
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(again, mine, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        y = x
        for layer in range(3):
            one = getattr(pyops.nn, kind)(y.shape[-1], 64).to("cuda")
            weights = {k: v for k, v in module.state_dict().items() if k.endswith(f"_l{layer}")}
            one.load_state_dict({k.replace(f"_l{layer}", "_l0"): v for k, v in weights.items()})
            y, _ = one(y)
        assert torch.equal(y, mine[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed, _ = module(x)
        graph.replay()
    assert torch.equal(replayed, mine[0])


# Hidden features and sequences, one of each tiling there and back, and beyond them.
@pytest.mark.parametrize("h, batch", [(768, 16), (768, 32), (768, 64), (2048, 16), (512, 100)])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_long_sequences_on_all_processors(kind, h, batch):
    """Blocks that miss each other's states would show: the last step depends on every other."""
    torch.manual_seed(0)
    module = getattr(pyops.nn, kind)(64, h).to("cuda", torch.bfloat16)
    native = getattr(torch.nn, kind)(64, h).to("cuda", torch.float64)
    native.load_state_dict(module.state_dict())
    x = torch.randn(300, batch, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    results = []
    for m, data in ((module, x), (native, wide)):
        y, _ = m(data)
        results.append((y[-1], *torch.autograd.grad(y[-1].square().sum(), [data, *m.parameters()])))
    for a, b in zip(*results, strict=True):
        assert (a.double() - b).norm() <= 0.05 * b.norm()


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
    ways = "tensorop_cuda" if d == 40 and is_half else "cuda", "cuda"
    if HOPPER and is_half and d != 130 and kind in ("none", "causal"):
        ways = "sm90", "sm90"
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


@pytest.mark.parametrize("kind", ATTENTION_MASKS)
def test_attention_gives_the_same_bits_again(kind):
    inputs = attention_inputs(kind, torch.bfloat16)
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
@pytest.mark.parametrize("lengths", [(1, 300), (64, 192), (449, 65), (1000, 1100), (4096, 4096)])
def test_attention_by_warpgroups(lengths, d, is_causal, dtype):
    """Several tiles a block of the grid; each query head's own keys, or shared by three."""
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
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm()


def test_attention_dropout_is_the_cpus():
    seed = torch.tensor(7)
    draw = torch.ops.pyops.attention_dropout
    assert torch.equal(draw(seed.cuda(), 0.3, [3, 130]).cpu(), draw(seed, 0.3, [3, 130]))


# Of each kernel of the backward: the sizes of x and of the weight, and the call's options.
CONVOLUTIONS = [
    ("conv2d_backward_cuda", (3, 6, 11, 13), (10, 3, 3, 2), {"groups": 2}),
    ("conv2d_backward_depthwise_cuda", (3, 6, 11, 13), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ("conv2d_backward_tensorop_cuda", (3, 24, 21, 19), (136, 24, 3, 3), {"padding": 1}),
    ("conv2d_backward_tf32_cuda", (3, 20, 21, 19), (132, 20, 3, 3), {"padding": 1}),
    ("conv2d_backward_3xtf32_cuda", (3, 20, 21, 19), (132, 20, 3, 3), {"padding": 1}),
    ("conv2d_backward_sm90", (3, 72, 21, 19), (136, 72, 3, 3), {"padding": 1}),
    ("conv2d_backward_sm90", (2, 40, 14, 15), (72, 40, 2, 5), {"padding": (1, 3)}),
    ("conv2d_backward_sm90", (3, 72, 21, 19), (136, 72, 1, 1), {}),
]


@pytest.mark.parametrize(
    ("kernel", "sizes", "filters", "options", "stride"),
    [(*c, stride) for c, stride in itertools.product(CONVOLUTIONS, ((1, 1), (2, 2), (1, 3)))],
    ids=str,
)
def test_convolutions_are_exact(kernel, sizes, filters, options, stride):
    """Small integers: exact in every order, so that a wrong tile, phase, bias or mask shows."""
    if "sm90" in kernel and not HOPPER:
        pytest.skip("no Hopper GPU")
    dtype = torch.float32 if "tf32" in kernel else torch.bfloat16
    x, w, b = (
        torch.randint(-1, 2, shape, device="cuda").to(dtype)
        for shape in (sizes, filters, filters[:1])
    )
    x, w = (t.to(memory_format=NHWC) for t in (x, w))
    inputs = [t.requires_grad_() for t in (x, w, b)]
    with torch.backends.cudnn.flags(allow_tf32="3xtf32" not in kernel), pyops.explain() as log:
        y = f.conv2d_relu(*inputs, stride=stride, **options)
        grad = torch.randint(-1, 2, y.shape, device="cuda").to(y)
        gradients = torch.autograd.grad(y, inputs, grad)
    assert [c.kernel for c in log.calls] == [kernel.replace("backward", "forward"), kernel]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.relu(F.conv2d(*wide, stride=stride, **options))
    assert torch.equal(y, expected.to(y))
    rights = torch.autograd.grad(expected, wide, grad.double())
    for mine, right in zip(gradients, rights, strict=True):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize(
    ("kernel", "channels", "window"),
    [
        ("conv2d_pool_forward_tensorop_cuda", 16, 3),
        pytest.param(
            "conv2d_pool_forward_sm90",
            40,
            2,
            marks=pytest.mark.skipif(not HOPPER, reason="no Hopper GPU"),
        ),
        ("conv2d_pool_forward_fused_cuda", 3, 2),
        ("conv2d_pool_forward_cuda", 3, 3),
    ],
)
def test_pooled_convolutions_are_exact(kernel, channels, window):
    x, w = (
        torch.randint(-1, 2, shape, device="cuda")
        .bfloat16()
        .to(memory_format=NHWC)
        .requires_grad_()
        for shape in ((2, channels, 17, 19), (24, channels, 3, 3))
    )
    with pyops.explain() as log:
        y = f.conv2d_relu_max_pool2d(x, w, kernel_size=window, pool_stride=2)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    assert [c.kernel for c in log.calls][:2] == [kernel, "conv2d_pool_backward_cuda"]
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = F.max_pool2d(F.relu(F.conv2d(*wide)), window, 2)
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(gradients, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert torch.equal(mine, right.to(mine))
