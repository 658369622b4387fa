"""Tensors whose class has its own `__torch_function__`: torch's functions are what it is asked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._pytree import tree_flatten, tree_unflatten

import pyops
import pyops.functional as P
from pyops._overrides import REASON
from test_direct import cell, image, network, rows

sdpa, native_sdpa = P.scaled_dot_product_attention, F.scaled_dot_product_attention


class Watched(Tensor):
    """Notes which functions it is given to."""

    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs)


class Doubling(Tensor):
    """Means something to the functions it knows alone."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        return result * 2 if func is F.linear else result


class Named(Tensor):
    """Changes nothing but its name."""


def kernel():
    return torch.rand(1, 1, 3, 3)


PACKED = torch.rand(5, 4), torch.tensor([2, 2, 1])


def packed(gates):
    hx, *rest = network(gates)
    wide = tuple(h[:, :2] for h in hx) if gates == 4 else hx[:, :2]
    return wide, *rest[:-1]


# Function, arguments, and the functions of torch's that a call becomes.
CALLS = {
    "linear": (P.linear, (rows(), rows()[0, 0]), [F.linear]),
    "linear_relu": (P.linear_relu, (rows(), rows()[0, 0]), [F.linear, F.relu]),
    "conv2d": (P.conv2d, (image(), kernel(), torch.rand(1)), [F.conv2d]),
    "conv2d, padding": (P.conv2d, (image(), kernel(), None, 1, "same"), [F.conv2d]),
    "conv2d_relu": (P.conv2d_relu, (image(), kernel()), [F.conv2d, F.relu]),
    "conv2d_relu_max_pool2d": (
        P.conv2d_relu_max_pool2d,
        (image(), kernel()),
        [F.conv2d, F.relu, F.max_pool2d],
    ),
    "max_pool2d": (P.max_pool2d, (image(), 2), [F.max_pool2d]),
    "max_pool2d, indices": (
        P.max_pool2d,
        (image(), 2, 1, 1, 1, True, True),
        [F.max_pool2d_with_indices],
    ),
    "lstm": (P.lstm, (rows()[0], *network(4)), [torch.lstm]),
    "gru": (P.gru, (rows()[0], *network(3)), [torch.gru]),
    "lstm, packed": (P.lstm, (*PACKED, *packed(4)), [torch.lstm]),
    "gru, packed": (P.gru, (*PACKED, *packed(3)), [torch.gru]),
    "lstm_cell": (P.lstm_cell, cell(4), [torch.lstm_cell]),
    "gru_cell": (P.gru_cell, cell(3), [torch.gru_cell]),
    "attention": (sdpa, (rows(), rows(), rows(), torch.rand(3, 3)), [native_sdpa]),
}


def each_as(kind, args):
    """The arguments, one of their tensors after the other being a `kind`."""
    leaves, tree = tree_flatten(args)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            yield tree_unflatten([*leaves[:i], leaf.as_subclass(kind), *leaves[i + 1 :]], tree)


@pytest.mark.parametrize("name", CALLS)
def test_torchs_namesake_is_called_whichever_argument_it_is(name):
    function, args, expected = CALLS[name]
    plain = function(*args)
    for given in each_as(Watched, args):
        with pyops.explain() as log:
            Watched.seen.clear()
            result = function(*given)
            seen = list(Watched.seen)
        assert seen == expected
        assert [(c.kernel, c.rejected) for c in log.calls] == [
            ("native", [("every kernel of ours", REASON)])
        ]
        assert log.calls[0].op == function.__name__ or "indices" in name
        torch.testing.assert_close(tensors(result), tensors(plain))


def tensors(result):
    return [t.as_subclass(Tensor) for t in tree_flatten(result)[0]]


@pytest.mark.parametrize("name", CALLS)
def test_a_plain_subclass_has_our_kernel(name):
    function, args, _ = CALLS[name]
    for given in each_as(Named, args):
        with pyops.explain() as log:
            result = function(*given)
        assert all(isinstance(t, Named) for t in tree_flatten(result)[0])
        assert log.calls and "native" not in {call.kernel for call in log.calls}


@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize("length", [3, 5, 7])
@pytest.mark.parametrize("bias", [causal_upper_left, causal_lower_right])
def test_masks_without_numbers(bias, length):
    q, (k, v) = torch.rand(2, 2, length, 8), torch.rand(2, 2, 2, 5, 8)
    mask = bias(length, 5)
    expected = native_sdpa(q, k, v, mask)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: sdpa(*t, mask), backend="eager")
    for ours in (sdpa(q, k, v, mask), compiled(q, k, v)):
        assert type(ours) is Tensor
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["eager", "compiled", "under a device"])
def test_weights_keep_their_meaning_in_an_accelerated_model(mode):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Doubling))
    x = torch.rand(3, 4)
    expected = model(x)
    pyops.accelerate(model)
    torch._dynamo.reset()
    call = torch.compile(model, backend="eager", fullgraph=True) if mode == "compiled" else model
    with torch.device("cpu" if mode == "under a device" else torch.get_default_device()):
        torch.testing.assert_close(call(x), expected)


def test_multihead_attention_is_asked_for_as_a_whole():
    layer = pyops.nn.MultiheadAttention(8, 2)
    weight = layer.out_proj.weight.detach()
    layer.out_proj.weight = nn.Parameter(weight.as_subclass(Watched))
    x = torch.rand(3, 2, 8)
    Watched.seen.clear()
    with pyops.explain() as log:
        layer(x, x, x, need_weights=False)
    assert F.multi_head_attention_forward in Watched.seen
    (call,) = log.calls
    assert (call.op, call.rejected[0][1]) == ("MultiheadAttention", REASON)


def test_fx_notes_our_operators():
    graph = torch.fx.symbolic_trace(lambda x, w: P.linear(x, w))
    assert "pyops" in str([n.target for n in graph.graph.nodes if n.op == "call_function"])
