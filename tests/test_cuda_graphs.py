"""Every call can be captured in a CUDA graph, forward and backward, and replays on new data."""

import pytest
import torch

import pyops
from kernel_calls import CALLS
from test_cuda_kernels import here
from test_cuda_rnn import network

f = pyops.functional
pytestmark = pytest.mark.cuda


def warmed_up(run):
    """`run`, after a first time in a stream of its own: gradients arise where the forward ran."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    return run


def captured(run):
    """A graph of `run`, and what it returned."""
    warmed_up(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_captured_call_replays(call):
    with here(call):
        inputs, others = call.inputs(), call.inputs(draw=1)
        starts = call.starts(inputs)
        graph, replayed = captured(lambda: call.results(inputs, starts))
        right = call.results(others, starts)
        with torch.no_grad():
            for name, value in others.tensors.items():
                inputs.tensors[name].copy_(value)
        for _ in range(2):
            graph.replay()
            for name, expected in right.items():
                assert torch.equal(replayed[name], expected), name


def test_a_captured_step_of_training_learns():
    """Forward, backward and optimizer of a model of ours, as one launch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 8, 10),
    )  # fmt: skip
    model = pyops.accelerate(model.cuda())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, labels = torch.randn(16, 3, 16, 16, device="cuda"), torch.arange(16, device="cuda") % 10

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    graph, loss = captured(step)
    losses = []
    for _ in range(20):
        graph.replay()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_captured_recurrent_layer_replays(kind):
    """Forward and backward, of packed sequences: nothing of their lengths is copied to the GPU."""
    data, run, _ = network(kind, torch.float32)
    graph, results = captured(lambda: run(data))
    with torch.no_grad():
        data.copy_(torch.randn_like(data))
    graph.replay()
    for replayed, right in zip(results, run(data), strict=True):
        assert torch.equal(replayed, right)


def test_attention_with_dropout_is_captured():
    """Every replay draws anew, and its backward draws the same."""
    q = torch.zeros(1, 2, 64, 32, device="cuda", requires_grad=True)  # every weight is 1/64
    v = torch.ones(1, 2, 64, 32, device="cuda", requires_grad=True)

    def step():
        out = f.scaled_dot_product_attention(q, q, v, dropout_p=0.5)
        return out, *torch.autograd.grad(out, v, torch.ones_like(out))

    graph, (out, grad_v) = captured(step)
    seen = []
    for _ in range(2):
        graph.replay()
        torch.testing.assert_close(out.sum(), grad_v.sum())  # both count what was kept
        seen.append(out.clone())
    assert not torch.equal(*seen)
