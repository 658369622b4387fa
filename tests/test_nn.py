"""The modules of pyops.nn against their torch.nn namesakes."""

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

import pyops
from layers import LAYERS, ONE_OF_EACH, PADDING, Layer, causal, judge, tensors
from suite import on_devices

one_of_each = pytest.mark.parametrize("layer", ONE_OF_EACH, ids=lambda layer: layer.cls)
with_weight = pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (layer, weight)
        for layer in ONE_OF_EACH
        for cls, weight in (
            ("Conv2d", "weight"),
            ("Linear", "weight"),
            ("LSTM", "weight_hh_l0"),
            ("GRUCell", "weight_hh"),
            ("MultiheadAttention", "in_proj_weight"),
        )
        if layer.cls == cls
    ],
    ids=str,
)


SEQUENCE_FIRST = (
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
)


def call(module, layer, dtype=torch.float32, device="cpu"):
    inputs, arguments = layer.draw(dtype, device)
    return tensors(module(*inputs, **arguments))


def assert_equal(ours, theirs):
    assert [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)] == [True] * len(theirs)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_agrees(layer, dtype, device):
    ours, native = (layer.build(n, dtype, device) for n in (pyops.nn, torch.nn))
    judge(ours, native, layer, dtype, device)


@on_devices
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_inference_agrees(layer, device):
    """In evaluation mode without gradients, where torch has shortcuts of its own."""
    ours, native = (layer.build(n, torch.float64, device).eval() for n in (pyops.nn, torch.nn))
    with torch.no_grad():
        results = [call(module, layer, torch.float64, device) for module in (ours, native)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@one_of_each
def test_is_the_native_layer_but_for_the_kernel(layer):
    ours, native = layer.build(pyops.nn), layer.build(torch.nn)
    assert isinstance(ours, getattr(torch.nn, layer.cls.replace("ReLU", "")))
    assert repr(ours) == repr(native)
    assert ours.state_dict().keys() == native.state_dict().keys()
    assert_equal([*ours.parameters()], [*native.parameters()])


@one_of_each
def test_state_dicts_are_interchangeable(layer):
    for source, target in ((torch.nn, pyops.nn), (pyops.nn, torch.nn)):
        source, target = layer.build(source), layer.build(target)
        changed = {name: value + 1 for name, value in source.state_dict().items()}
        source.load_state_dict(changed)
        target.load_state_dict(source.state_dict())
        assert_equal([*target.state_dict().values()], [*changed.values()])


@on_devices
@one_of_each
def test_copies_compute_the_same(layer, device):
    module, file = layer.build(pyops.nn, device=device), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(other) is type(module)
        assert_equal(*(call(m, layer, device=device) for m in (other, module)))


@one_of_each
def test_hooks_run(layer):
    module, seen = layer.build(pyops.nn), []
    module.register_forward_pre_hook(lambda *_: seen.append("before"))
    module.register_forward_hook(lambda *_: seen.append("after"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    call(module, layer)[0].sum().backward()
    assert seen == ["before", "after", "backward"]


@with_weight
def test_tied_weights_add_their_gradients(layer, weight):
    gradients = []
    for namespace in (pyops.nn, torch.nn):
        first = layer.build(namespace)
        second = copy.deepcopy(first)
        setattr(second, weight, getattr(first, weight))
        (call(first, layer)[0].sum() + 2 * call(second, layer)[0].pow(2).sum()).backward()
        gradients.append(getattr(second, weight).grad)
    torch.testing.assert_close(*gradients)


@with_weight
def test_parametrized(layer, weight):
    ours, native = layer.build(pyops.nn), layer.build(torch.nn)
    for module in (ours, native):
        parametrizations.weight_norm(module, weight)
    judge(ours, native, layer)
    parametrize.remove_parametrizations(ours, weight)
    assert type(ours) is getattr(pyops.nn, layer.cls)


@on_devices
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@one_of_each
def test_compiles_without_a_graph_break(layer, training, device):
    torch._dynamo.reset()
    module = layer.build(pyops.nn, device=device).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        both = [call(m, layer, device=device) for m in (compiled, module)]
        torch.testing.assert_close(*both)


@one_of_each
def test_operations_are_counted(layer):
    """By torch.utils.flop_counter, as those of native's plain operations; fused ones it misses."""
    counts = []
    for namespace in (pyops.nn, torch.nn):
        module = layer.build(namespace)
        with (
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            call(module, layer)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert (counts[0] > 0) == (layer.cls != "MaxPool2d")


@pytest.mark.parametrize("layers", [("Conv2d", "Linear"), ("LSTM", "GRU")], ids=" ".join)
def test_operations_of_gradients_are_counted(layers):
    """Twice those of the forward: of the input and of the weights."""
    for layer in (layer for layer in ONE_OF_EACH if layer.cls in layers):
        with FlopCounterMode(display=False) as counter:
            y = call(layer.build(pyops.nn), layer)[0]
            forward = counter.get_total_flops()
            y.sum().backward()
        assert counter.get_total_flops() == 3 * forward > 0


@one_of_each
def test_one_graph_serves_every_batch_size(layer):
    """Export refuses what asks a symbolic size for its number; torch.compile would start anew."""
    module, (inputs, _) = layer.build(pyops.nn).eval(), layer.draw()
    dim = 1 if isinstance(module, (torch.nn.RNNBase, *SEQUENCE_FIRST)) else 0
    shapes = tuple({dim: torch.export.Dim("batch", min=2)} for _ in inputs)
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes).module()
    twice = [torch.cat([x, x], dim) for x in inputs]
    torch.testing.assert_close(exported(*twice), module(*twice))


@pytest.mark.parametrize("cls", ["LSTM", "GRU"])
def test_recurrent_layers_of_torch_still_break_the_graph(cls):
    """What makes ours traceable must not reach anyone else's."""
    torch._dynamo.reset()
    x = torch.randn(3, 2, 4)
    torch.compile(getattr(pyops.nn, cls)(4, 5), fullgraph=True, backend="eager")(x)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(getattr(torch.nn, cls)(4, 5), fullgraph=True, backend="eager")(x)


@pytest.mark.parametrize("order", ["pyops, torch._dynamo", "torch._dynamo, pyops"])
def test_traceable_in_either_order_of_imports(order):
    code = f"""
import sys, torch, {order}
x = torch.randn(3, 2, 4)
torch.compile(pyops.nn.LSTM(4, 5), fullgraph=True, backend="eager")(x)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_leaves_the_compiler_alone():
    code = "import sys, pyops; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


SELF_ATTENTION = [
    {},
    {"key_padding_mask": PADDING},
    {"attn_mask": causal(4), "is_causal": True},
    {"attn_mask": causal(4).isinf(), "key_padding_mask": PADDING},
]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("arguments", SELF_ATTENTION, ids=lambda a: "+".join(a) or "plain")
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "inference"])
@on_devices
def test_self_attention(grad, arguments, need_weights, device):
    """One tensor three times, which torch projects at once and may hand to one kernel."""
    arguments = {**arguments, "need_weights": need_weights}
    attention = Layer("MultiheadAttention", 8, 2, batch_first=True, inputs=[], call=arguments)
    ours, native = (attention.build(n, torch.float64, device) for n in (pyops.nn, torch.nn))
    _, arguments = attention.draw(torch.float64, device)
    results = []
    for module in (ours.train(grad), native.train(grad)):
        x = torch.linspace(-1, 1, 64, dtype=torch.float64, device=device)
        x = x.reshape(2, 4, 8).requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            output, weights = module(x, x, x, **arguments)
        assert (weights is not None) == need_weights
        results.append([output, weights])
        if grad:
            parameters = [x, *module.parameters()]
            results[-1] += torch.autograd.grad(output.pow(3).sum(), parameters)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "arguments"),
    [
        ([(3, 2, 8), (5, 2, 7), (5, 2, 7)], {}),
        ([(3, 2, 8), (5, 3, 8), (5, 3, 8)], {}),
        ([(3, 2, 8), (5, 2, 8), (4, 2, 8)], {}),
        ([(3, 2, 8), (5, 8), (5, 8)], {}),
        ([(8,), (8,), (8,)], {}),
        ([(3, 2, 8)] * 3, {"attn_mask": causal(4)}),
        ([(3, 2, 8)] * 3, {"key_padding_mask": PADDING}),
        ([(3, 2, 8)] * 3, {"is_causal": True}),
        ([(3, 2, 8)] * 3, {"attn_mask": torch.ones(3, 3, dtype=torch.int)}),
    ],
    ids=str,
)
def test_attention_refuses_what_torch_refuses(shapes, arguments):
    inputs = [torch.randn(shape) for shape in shapes]
    with pytest.raises(Exception) as native:
        torch.nn.MultiheadAttention(8, 2)(*inputs, need_weights=False, **arguments)
    with pytest.raises(native.type) as ours:
        pyops.nn.MultiheadAttention(8, 2)(*inputs, need_weights=False, **arguments)
    assert ours.type is native.type


def test_weights_at_inference_are_natives():
    x = torch.randn(2, 3, 8)
    layer = torch.nn.MultiheadAttention(8, 2).eval()
    with torch.no_grad(), pyops.explain() as log:
        expected = layer(x, x, x)
        got = pyops.accelerate(layer)(x, x, x)
    assert all(map(torch.equal, got, expected))
    (call,) = log.calls
    assert (call.op, call.kernel) == ("MultiheadAttention", "native")


@pytest.mark.parametrize("need_weights", [True, False])
def test_weights_that_are_wanted_are_explained(need_weights):
    x = torch.randn(4, 2, 8)
    with pyops.explain() as log:
        pyops.nn.MultiheadAttention(8, 2)(x, x, x, need_weights=need_weights)
    (call,) = (call for call in log.calls if call.op == "scaled_dot_product_attention")
    native = [("every kernel of ours", "need_weights")]
    assert (call.rejected == native) == (call.kernel == "native") == need_weights


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_nested_tensors_run_natively():
    layer = Layer("TransformerEncoderLayer", 8, 2, 16, 0.0, batch_first=True, inputs=[])
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with torch.no_grad(), pyops.explain() as log:
        ours, native = (layer.build(n).eval()(nested) for n in (pyops.nn, torch.nn))
    assert_equal(ours.unbind(), native.unbind())
    (call,) = log.calls
    assert (call.op, call.kernel) == ("TransformerEncoderLayer", "native")
    assert call.rejected == [("every kernel of ours", "nested tensor")]


@pytest.mark.parametrize(
    "layer",
    [
        Layer("LSTM", 4, 6, num_layers=3, dropout=0.5, inputs=[(5, 3, 4)]),
        Layer("GRU", 4, 6, num_layers=3, dropout=0.5, inputs=[(5, 3, 4)]),
        Layer("MultiheadAttention", 8, 2, dropout=0.5, inputs=[(4, 2, 8)] * 3),
        Layer("TransformerEncoderLayer", 8, 2, 16, dropout=0.5, inputs=[(4, 2, 8)]),
        Layer("TransformerDecoderLayer", 8, 2, 16, dropout=0.5, inputs=[(4, 2, 8)] * 2),
    ],
    ids=str,
)
@on_devices
def test_dropout(layer, device):
    """Drawn anew in training, from torch's generator; absent in evaluation."""
    module, run = layer.build(pyops.nn, device=device), partial(call, layer=layer, device=device)
    torch.manual_seed(3)
    first, second = run(module), run(module)
    torch.manual_seed(3)
    assert_equal(run(module), first)
    assert not torch.equal(first[0], second[0])
    kept = Layer(layer.cls, *layer.args, **layer.kwargs | {"dropout": 0.0}, inputs=layer.inputs)
    assert_equal(run(module.eval()), run(kept.build(pyops.nn, device=device)))
