"""What only a GPU can show: which kernel serves what, and that it is exact or close."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import pyops

f = pyops.functional
pytestmark = pytest.mark.cuda

NHWC = torch.channels_last


def test_half_precision_linear_runs_on_tensor_cores():
    """Small integers: exact in every order, so that a wrong tile, bias or mask shows."""
    x, w, b, grad = (
        torch.randint(-2, 3, shape, device="cuda").bfloat16().requires_grad_()
        for shape in ((200, 72), (136, 72), (136,), (200, 136))
    )
    hopper = torch.cuda.get_device_capability() == (9, 0)
    with pyops.explain() as log:
        y = f.linear_relu(x, w, b)
        gradients = torch.autograd.grad(y, (x, w, b), grad)
    forward = "linear_forward_sm90" if hopper else "linear_forward_tensorop_cuda"
    assert [c.kernel for c in log.calls] == [forward, "linear_backward_tensorop_cuda"]
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.relu(F.linear(*wide))
    assert torch.equal(y, expected.to(y))
    for mine, right in zip(
        gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True
    ):
        assert torch.equal(mine, right.to(mine))


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


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recurrent_layers_on_packed_sequences(kind, dtype):
    data, run, module = network(kind, dtype)
    with pyops.explain() as log:
        mine = run(data)
    way = "tensorop_cuda" if dtype == torch.bfloat16 else "cuda"
    kernels = [f"rnn_{direction}_{way}" for direction in ("forward", "backward")]
    assert [c.kernel for c in log.calls] == [kernels[0]] * 4 + [kernels[1]] * 4
    module.double()
    right = run(data.detach().double().requires_grad_())
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for a, b in zip(mine, right, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_launch_for_all_steps(kind, dtype):
    """As a launch for each step gives it; twice the same; replayed in a graph."""
    module = getattr(pyops.nn, kind)(40, 200, bidirectional=True).to("cuda", dtype)
    x = torch.randn(12, 9, 40, device="cuda", dtype=dtype)
    with torch.no_grad(), pyops.explain() as log:
        y, _ = module(x)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, [12] * 8 + [11])
        right, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0])
    kernels = [c.kernel for c in log.calls]
    assert kernels[:2] == ["rnn_forward_resident_cuda"] * 2
    assert "rnn_forward_resident_cuda" not in kernels[2:]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    difference = (y[:, :8] - right[:, :8]).double().norm()
    assert difference <= tolerance * right[:, :8].double().norm()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        replayed, _ = module(x)
    graph.replay()
    assert torch.equal(replayed, y)


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
    on_tensor_cores = d == 40 and dtype in (torch.bfloat16, torch.float16)
    way = "_tensorop" if on_tensor_cores else ""
    assert [c.kernel for c in log.calls] == [
        f"attention_forward{way}_cuda",
        "attention_backward_cuda",
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


def test_attention_dropout_is_the_cpus():
    seed = torch.tensor(7)
    draw = torch.ops.pyops.attention_dropout
    assert torch.equal(draw(seed.cuda(), 0.3, [3, 130]).cpu(), draw(seed, 0.3, [3, 130]))


# Of each kernel of the backward: the sizes of x and of the weight, and the call's options.
CONVOLUTIONS = {
    "conv2d_backward_cuda": ((3, 6, 11, 13), (10, 3, 3, 2), {"stride": 2, "groups": 2}),
    "conv2d_backward_depthwise_cuda": ((3, 6, 11, 13), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "conv2d_backward_tensorop_cuda": ((3, 24, 21, 19), (136, 24, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize(
    ("kernel", "stride"), itertools.product(CONVOLUTIONS, ((1, 1), (2, 2), (1, 3))), ids=str
)
def test_convolutions_are_exact(kernel, stride):
    """Small integers: exact in every order, so that a wrong tile, phase, bias or mask shows."""
    sizes, filters, options = CONVOLUTIONS[kernel]
    options = {**options, "stride": stride}
    x, w, b = (
        torch.randint(-1, 2, shape, device="cuda").bfloat16()
        for shape in (sizes, filters, filters[:1])
    )
    x, w = (t.to(memory_format=NHWC) for t in (x, w))
    inputs = [t.requires_grad_() for t in (x, w, b)]
    with pyops.explain() as log:
        y = f.conv2d_relu(*inputs, **options)
        grad = torch.randint(-1, 2, y.shape, device="cuda").to(y)
        gradients = torch.autograd.grad(y, inputs, grad)
    assert [c.kernel for c in log.calls] == [kernel.replace("backward", "forward"), kernel]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.relu(F.conv2d(*wide, **options))
    assert torch.equal(y, expected.to(y))
    rights = torch.autograd.grad(expected, wide, grad.double())
    for mine, right in zip(gradients, rights, strict=True):
        assert torch.equal(mine, right.to(mine))


@pytest.mark.parametrize(
    ("kernel", "channels", "window"),
    [
        ("conv2d_pool_forward_tensorop_cuda", 16, 3),
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
