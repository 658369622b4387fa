"""Functions that skip `torch.ops`: whoever watches PyTorch's calls still sees them."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyops.functional as P


def image():
    return torch.rand(1, 1, 4, 4)


def rows():
    return torch.rand(1, 1, 3, 4)


def cell(gates):
    """Arguments of an LSTM's cell, or a GRU's."""
    x, h = torch.rand(2, 5), torch.rand(2, 3)
    return x, (h, h) if gates == 4 else h, torch.rand(3 * gates, 5), torch.rand(3 * gates, 3)


def network(gates):
    """Arguments of an LSTM, or a GRU, behind its input of (T, B, 4)."""
    h, weights = torch.rand(1, 3, 2), [torch.rand(2 * gates, 4), torch.rand(2 * gates, 2)]
    return (h, h) if gates == 4 else h, weights, False, 1, 0.0, False, False, False


CALLS = {
    "lstm": lambda: P.lstm(rows()[0], *network(4)),
    "gru": lambda: P.gru(rows()[0], *network(3)),
    "conv2d": lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3)),
    "conv2d_relu": lambda: P.conv2d_relu(image(), torch.rand(1, 1, 3, 3)),
    "conv2d_relu_max_pool2d": lambda: P.conv2d_relu_max_pool2d(image(), torch.rand(1, 1, 3, 3)),
    "max_pool2d": lambda: P.max_pool2d(image(), 2),
    "max_pool2d_with_indices": lambda: P.max_pool2d(image(), 2, return_indices=True),
    "linear": lambda: P.linear(rows(), rows()[0, 0]),
    "linear_relu": lambda: P.linear_relu(rows(), rows()[0, 0]),
    "lstm_cell": lambda: P.lstm_cell(*cell(4)),
    "gru_cell": lambda: P.gru_cell(*cell(3)),
    "scaled_dot_product_attention": lambda: P.scaled_dot_product_attention(rows(), rows(), rows()),
}


class Notes:
    def __init__(self):
        super().__init__()
        self.names = []

    def note(self, func, args, kwargs):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeesFunctions(Notes, TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.note(func, args, kwargs)


class SeesOperators(Notes, TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.note(func, args, kwargs)


@pytest.mark.parametrize("op", CALLS)
def test_a_function_mode_sees_the_call(op):
    with SeesFunctions() as seen:
        CALLS[op]()
    assert any(name.startswith(f"pyops.{op}") for name in seen.names), seen.names


@pytest.mark.parametrize("op", CALLS)
def test_a_dispatch_mode_sees_operators_of_ours(op):
    with SeesOperators() as seen:
        CALLS[op]()
    assert any(name.startswith("pyops.") for name in seen.names), seen.names


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda: P.conv2d(image(), [1.0]), "conv2d: weight must be a Tensor, got [float]"),
        (
            lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3), groups="2"),
            "conv2d: groups must be an integer, got str",
        ),
        (
            lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3), groups=True),
            "conv2d: groups must be an integer, got bool",
        ),
        (
            lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3), stride=(True, 1)),
            "conv2d: stride must be integers, got (bool, int)",
        ),
        (
            lambda: P.max_pool2d(image(), True),
            "max_pool2d: kernel_size must be integers, got (bool, bool)",
        ),
        (
            lambda: P.max_pool2d(image(), 2, ceil_mode=1),
            "max_pool2d: ceil_mode must be a bool, got int",
        ),
        (
            lambda: P.scaled_dot_product_attention(rows(), rows(), rows(), is_causal=None),
            "scaled_dot_product_attention: is_causal must be a bool, got NoneType",
        ),
        (
            lambda: P.conv2d(image(), image(), bias=2.0),
            "conv2d: bias must be a Tensor or None, got float",
        ),
        (
            lambda: P.max_pool2d(image(), 2.5),
            "max_pool2d: kernel_size must be integers, got (float, float)",
        ),
        (lambda: P.linear([1.0], rows()), "linear: input must be a Tensor, got [float]"),
        (
            lambda: P.linear(numpy.ones(3), rows()),
            "linear: input must be a Tensor, got numpy.ndarray",
        ),
        (lambda: P.linear(rows(), None), "linear: weight must be a Tensor, got NoneType"),
        (lambda: P.linear_relu([1.0] * 9, rows()), "linear_relu: input must be a Tensor, got list"),
        (
            lambda: P.scaled_dot_product_attention("q", rows(), rows()),
            "scaled_dot_product_attention: query must be a Tensor, got str",
        ),
        (
            lambda: P.scaled_dot_product_attention(rows(), rows(), rows(), dropout_p="0"),
            "scaled_dot_product_attention: dropout_p must be a number, got str",
        ),
        (
            lambda: P.lstm_cell(rows(), (1, 2), rows(), rows()),
            "lstm_cell: hx must be Tensors, got (int, int)",
        ),
        (
            lambda: P.lstm_cell(rows(), None, rows(), rows()),
            "lstm_cell: hx must be Tensors, got NoneType",
        ),
        (lambda: P.lstm(None, *network(4)), "lstm: input must be a Tensor, got NoneType"),
        (
            lambda: P.lstm(rows()[0], rows()[0], *network(4)[1:]),
            "lstm: hx must be Tensors, got Tensor",
        ),
        (
            lambda: P.gru(rows()[0], *network(3)[:2], 1, *network(3)[3:]),
            "gru: has_biases must be a bool, got int",
        ),
        (
            lambda: P.gru(rows()[0, 0], None, *network(3)[:-1]),
            "gru: batch_sizes must be a Tensor, got NoneType",
        ),
        (
            lambda: P.gru_cell(rows(), (rows(), rows()), rows(), rows()),
            "gru_cell: hx must be a Tensor, got (Tensor, Tensor)",
        ),
    ],
)
def test_a_wrong_type_names_op_and_argument(call, expected):
    """As native in the exception's type; no tensor's numbers are printed."""
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "size", [numpy.int64(2), (numpy.int32(2), 1), [1, numpy.int64(2)]], ids=str
)
def test_integers_of_numpy_are_integers(size):
    x, w = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    assert torch.equal(P.max_pool2d(x, size, size), F.max_pool2d(x, size, size))
    assert P.conv2d(x, w, None, size).shape == F.conv2d(x, w, None, size).shape


def test_a_wrong_value_is_the_operators_to_refuse():
    with pytest.raises(RuntimeError, match="conv2d: groups must be at least 1, got 0"):
        P.conv2d(image(), torch.rand(1, 1, 3, 3), groups=0)
