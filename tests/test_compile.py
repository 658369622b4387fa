"""`torch.compile(model, backend="pyops")`."""

import copy
from importlib.metadata import PackageNotFoundError, distribution, entry_points

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyops.compile
from judging import assert_accurate
from suite import on_devices

P = pyops.functional


class ConvNet(nn.Module):
    """Fusible neighbours that only a graph sees: across modules, functions and methods."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.conv3 = nn.Conv2d(4, 6, 3)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.linear1, self.linear2 = nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.conv2(x).relu_()
        x = F.relu(F.max_pool2d(self.conv3(x), 2))
        return self.linear2(torch.relu(self.linear1(x.mean((2, 3)))))


def build(cls=ConvNet):
    torch.manual_seed(0)
    return cls()


def images(*shape, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device)


def results(function, model, x):
    y = function(x)
    gradients = torch.autograd.grad(y.pow(2).sum(), list(model.parameters()))
    return {"output": y.detach()} | {f"grad_{i}": g for i, g in enumerate(gradients)}


def targets(function, *inputs):
    """What the graph calls after the replacement; the graph runs and must agree with eager."""
    torch._dynamo.reset()
    called = []

    def keep(graph, _):
        pyops.compile.replace(graph)
        for module in graph.modules():
            if isinstance(module, torch.fx.GraphModule):
                module.graph.lint()
                called.extend(n.target for n in module.graph.nodes if n.op.startswith("call_"))
        return graph.forward

    compiled = torch.compile(function, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), function(*inputs))
    return called


def ours(called):
    """The calls that are ours, by name: functions, and operators where Dynamo looked inside one."""
    return [f.__name__ for f in called if "pyops" in str(getattr(f, "__module__", ""))]


def test_fuses_across_modules_functions_and_methods():
    assert ours(targets(build(), images(2, 3, 16, 16))) == [
        "conv2d_relu_max_pool2d",
        "conv2d_relu",
        "conv2d_relu_max_pool2d",
        "linear_relu",
        "linear",
    ]


@on_devices
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_trains_and_infers_like_eager(dynamic, device):
    """Through TorchInductor, at several sizes."""
    torch._dynamo.reset()
    native = build().to(device)
    model, wide = copy.deepcopy(native), copy.deepcopy(native).double()
    compiled = torch.compile(model, backend=pyops.compile.backend, fullgraph=True, dynamic=dynamic)
    for n, size in ((2, 16), (3, 16), (5, 18)):
        x = images(n, 3, size, size, device=device)
        ours, theirs = results(compiled, model, x), results(native, native, x)
        assert_accurate(ours, theirs, results(wide, wide, x.double()), max_zeros=0.9, kinks=True)
        with torch.no_grad():
            close = 1e-5 if device == "cpu" else 1e-3  # cuDNN's float32 is TF32 by default
            torch.testing.assert_close(compiled(x), theirs["output"], rtol=close, atol=close / 10)


@pytest.fixture
def installed():
    """The entry points of these sources come with their installation."""
    try:
        return distribution("pyops")
    except PackageNotFoundError:
        pytest.skip("pyops is not installed here")


def test_is_known_by_its_name(installed):
    (entry,) = entry_points(group="torch_dynamo_backends", name="pyops")
    assert entry.load() is pyops.compile.backend
    torch._dynamo.reset()
    model, x = build(), images(2, 3, 16, 16)
    torch.testing.assert_close(torch.compile(model, backend="pyops")(x), model(x))


def test_options_are_inductors():
    torch._dynamo.reset()
    model, x, backend = build(), images(2, 3, 16, 16), pyops.compile.backend
    compiled = torch.compile(model, backend=backend, options={"max_autotune": False})
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(Exception, match="no_such_option"):
        torch.compile(build(), backend=backend, options={"no_such_option": 1})(x)


def test_adds_no_graph_break():
    explanation = torch._dynamo.explain(build())(images(2, 3, 16, 16))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)


CONV = {"weight": images(4, 3, 3, 3), "bias": images(4)}


def conv(x):
    return F.conv2d(x, **CONV)


def read_twice(x):
    y = conv(x)
    return F.relu(y) + y


def returned_too(x):
    y = conv(x)
    return y, F.relu(y)


def written_in_place(x):
    y = conv(x)
    y.relu_()
    return y * 2


def pooled_and_read(x):
    y = conv(x).relu()
    return F.max_pool2d(y, 2), y


def with_indices(x):
    return F.max_pool2d(conv(x).relu(), 2, return_indices=True)


def input_changes_between(x):
    x = x.clone()
    y = conv(x)
    x.zero_()
    return F.relu(y), x


def gradient_stops_between(x):
    y = conv(x)
    with torch.no_grad():
        z = F.relu(y)
    return z


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (read_twice, ["conv2d"]),
        (returned_too, ["conv2d"]),
        (written_in_place, ["conv2d"]),
        (pooled_and_read, ["conv2d_relu", "max_pool2d"]),
        (with_indices, ["conv2d_relu", "max_pool2d"]),
        (input_changes_between, ["conv2d_relu"]),
        (gradient_stops_between, ["conv2d"]),
        (
            lambda x: F.relu(F.max_pool2d(conv(x), 3, 2, 1, ceil_mode=True)),
            ["conv2d_relu_max_pool2d"],
        ),
        (lambda x: torch.max_pool2d(torch.relu_(conv(x)), 2), ["conv2d_relu_max_pool2d"]),
        (lambda x: F.relu(F.max_pool2d(conv(x), 2, 2, 0, 2)), ["conv2d_relu_max_pool2d"]),
        (lambda x: F.max_pool2d(F.relu(conv(x)), 2, 1, 1, 8), ["conv2d_relu_max_pool2d"]),
        (lambda x: F.relu(F.max_pool2d(conv(x), 2, 1, 1, 8)), ["conv2d", "max_pool2d"]),
        (lambda x: F.relu(F.max_pool2d(conv(x), 2, 1, (0, 1), (1, 8))), ["conv2d", "max_pool2d"]),
        (lambda x: F.relu(F.max_pool2d(conv(x), 2, 1, [1], (1, 8))), ["conv2d", "max_pool2d"]),
        (lambda x: F.relu(F.relu(conv(x))), ["conv2d_relu"]),
        (lambda x: F.relu6(conv(x)), ["conv2d"]),
        (lambda x: F.max_pool2d(x, 2).relu(), ["max_pool2d"]),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_fuses_only_what_nothing_else_reads(function, expected):
    assert ours(targets(function, images(2, 3, 9, 9).requires_grad_())) == expected


def test_gradient_mode_between_two_calls_is_respected():
    torch._dynamo.reset()
    compiled = torch.compile(gradient_stops_between, backend=pyops.compile.backend, fullgraph=True)
    assert not compiled(images(2, 3, 9, 9).requires_grad_()).requires_grad


def test_checkpointed_parts_are_replaced_too():
    def function(x):
        return torch.utils.checkpoint.checkpoint(lambda x: F.relu(conv(x)), x, use_reentrant=False)

    assert ours(targets(function, images(2, 3, 9, 9).requires_grad_())) == ["conv2d_relu"]


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.MultiheadAttention(8, 2), (4, 2, 8), ["multi_head_attention_forward"]),
        (nn.LSTMCell(4, 5), (3, 4), ["lstm_cell"]),
        (nn.GRUCell(4, 5), (3, 4), ["gru_cell"]),
        (pyops.nn.LSTM(4, 5), (3, 2, 4), ["lstm"]),
        (pyops.nn.GRU(4, 5), (3, 2, 4), ["gru"]),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_other_layers(module, shape, expected):
    def function(x):
        return module(x, x, x) if isinstance(module, nn.MultiheadAttention) else module(x)

    assert ours(targets(function, images(*shape))) == expected


@pytest.mark.parametrize("cls", ["lstm", "gru"])
def test_recurrent_layers_of_torch_where_dynamo_lets_them_through(cls):
    module = getattr(nn, cls.upper())(4, 5)
    with torch._dynamo.config.patch(allow_rnn=True):
        assert ours(targets(module, images(3, 2, 4))) == [cls]


def test_attention_function():
    def function(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)

    assert ours(targets(function, *images(3, 2, 2, 5, 8))) == ["scaled_dot_product_attention"]


@on_devices
def test_autocast(device):
    torch._dynamo.reset()
    native = build().to(device)
    model, x = copy.deepcopy(native), images(2, 3, 16, 16, device=device)
    compiled = torch.compile(model, backend=pyops.compile.backend, fullgraph=True)
    wide = native(x)
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = compiled(x), native(x)
    assert ours.dtype == theirs.dtype
    assert (ours - wide).abs().max() <= 3 * (theirs - wide).abs().max() + 1e-3
