"""What only a GPU can show of recurrent layers: which kernel serves, and that it is close."""

import pytest
import torch

import pyops
from kernel_calls import runs
from recurrent import without_cudnn

pytestmark = pytest.mark.cuda

# Relative to float64, in the L2 norm. The CPU's kernels, which round alike, leave 3e-7 and 0.0035.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 0.01}


def assert_close(ours, right):
    for a, b in zip(ours, right, strict=True):
        assert (a.double() - b).norm() <= TOLERANCE[a.dtype] * b.norm()


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


def kernels(dtype, way, layers=1):
    """Of a forward and backward in which the GPU takes all steps at once."""
    if dtype != torch.bfloat16:
        there = back = "cuda"
    else:
        there, back = "tensorop_cuda", "sm90" if "sm_90" in runs() else "tensorop_cuda"
    forward, backward = f"rnn_forward_{way}_{there}", f"rnn_backward_{way}_{back}"
    return [forward] * layers + [backward] * layers


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recurrent_layers_on_packed_sequences(kind, dtype):
    data, run, module = network(kind, dtype)
    with pyops.explain() as log:
        mine = run(data)
    assert [c.kernel for c in log.calls] == kernels(dtype, "wavefront", layers=2)
    module.double()
    assert_close(mine, run(data.detach().double().requires_grad_()))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("both", [False, True], ids=["one direction", "both directions"])
def test_one_launch_for_all_steps(kind, dtype, both):
    """As the layer in float64 gives it; twice the same; replayed in a graph."""
    module = getattr(pyops.nn, kind)(40, 200, bidirectional=both).to("cuda", dtype)
    x = torch.randn(12, 9, 40, device="cuda", dtype=dtype, requires_grad=True)

    def run():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pyops.explain() as log:
        mine = run()
    assert [c.kernel for c in log.calls] == kernels(dtype, "wavefront" if both else "resident")
    for again, first in zip(run(), mine, strict=True):
        assert torch.equal(again, first)
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed, _ = module(x)
        graph.replay()
    assert torch.equal(replayed, mine[0])
    native = getattr(torch.nn, kind)(40, 200, bidirectional=both).to("cuda", torch.float64)
    native.load_state_dict(module.state_dict())
    wide = x.detach().double().requires_grad_()
    with without_cudnn():
        y, _ = native(wide)
    right = (y, *torch.autograd.grad(y.square().sum(), [wide, *native.parameters()]))
    assert_close(mine, right)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("steps, batch", [(20, 32), (5, 140)], ids=["at once", "step by step"])
def test_float32_on_tensor_cores(steps, batch, kind):
    """Of large products over all rows: three of TF32 for one, or one where that is allowed."""
    module = getattr(pyops.nn, kind)(512, 704).to("cuda")
    x = torch.randn(steps, batch, 512, device="cuda", requires_grad=True)

    def run():
        y, _ = module(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pyops.explain() as log:
        mine = run()
    way = "resident_cuda" if batch <= 128 else "tensorop_cuda"
    assert [c.kernel for c in log.calls] == [f"rnn_forward_{way}", f"rnn_backward_{way}"]
    native = getattr(torch.nn, kind)(512, 704).to("cuda", torch.float64)
    native.load_state_dict(module.state_dict())
    wide = x.detach().double().requires_grad_()
    with without_cudnn():
        y, _ = native(wide)
    assert_close(mine, (y, *torch.autograd.grad(y.square().sum(), [wide, *native.parameters()])))
    with torch.backends.cudnn.flags(True, allow_tf32=True):
        rounded, _ = module(x)
    assert 1e-5 < (rounded.double() - y).norm() / y.norm() < 1e-2


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stacked_layers_are_a_wavefront(kind, dtype):
    """Forward as layer by layer, to the last bit; in another stream, and replayed in a graph."""
    module = getattr(pyops.nn, kind)(40, 64, num_layers=3, dropout=0.5).to("cuda", dtype).eval()
    x = torch.randn(150, 9, 40, device="cuda", dtype=dtype, requires_grad=True)

    def run():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pyops.explain() as log:
        mine = run()
    assert [c.kernel for c in log.calls] == kernels(dtype, "wavefront")
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
            one = getattr(pyops.nn, kind)(y.shape[-1], 64).to("cuda", dtype)
            weights = {k: v for k, v in module.state_dict().items() if k.endswith(f"_l{layer}")}
            one.load_state_dict({k.replace(f"_l{layer}", "_l0"): v for k, v in weights.items()})
            y, _ = one(y)
        assert torch.equal(y, mine[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed, _ = module(x)
        graph.replay()
    assert torch.equal(replayed, mine[0])
    native = getattr(torch.nn, kind)(40, 64, num_layers=3).to("cuda", torch.float64)
    native.load_state_dict(module.state_dict())
    wide = x.detach().double().requires_grad_()
    with without_cudnn():
        y, _ = native(wide)
    right = (y, *torch.autograd.grad(y.square().sum(), [wide, *native.parameters()]))
    assert_close(mine, right)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("steps, form", [(130, dict(num_layers=2)), (5, dict(bidirectional=True))])
def test_layers_side_by_side_have_second_derivatives(kind, steps, form):
    """Also where a gradient is not wanted, and where only a state has one."""
    ours = getattr(pyops.nn, kind)(3, 4, **form).to("cuda", torch.float64)
    native = getattr(torch.nn, kind)(3, 4, **form).to("cuda", torch.float64)
    native.load_state_dict(ours.state_dict())
    x = torch.randn(steps, 2, 3, device="cuda", dtype=torch.float64)
    results = []
    for module in (ours, native):
        data, sources = x.clone().requires_grad_(), list(module.parameters())[2:]
        with without_cudnn():
            _, state = module(data)
        state = state[0] if kind == "LSTM" else state
        grads = torch.autograd.grad(state.square().sum(), [data, *sources], create_graph=True)
        total = sum(g.square().sum() for g in grads)
        results.append((*grads, *torch.autograd.grad(total, [data, *sources])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


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
    for m, data in ((module, x), (module, x), (native, wide)):
        y, _ = m(data)
        results.append((y[-1], *torch.autograd.grad(y[-1].square().sum(), [data, *m.parameters()])))
    ours, again, right = results
    assert all(map(torch.equal, ours, again))
    assert_close(ours, right)
