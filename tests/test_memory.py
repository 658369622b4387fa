"""What PyTorch itself refuses, memory that is not there above all: its exception, and the call."""

import re

import pytest
import torch

import pyops
from suite import on_devices

f = pyops.functional
ops = torch.ops.pyops
PLANES = (2**30, 4, 2**8, 2**8)  # a float32 tensor of 2^50 bytes: more than addresses can say
ROWS, STATES = (2**40, 2**10), (2**40, 2)
SEQUENCES = (2**20, 2**20, 2**10)


def lstm(tensor, function=f.lstm):
    state, weights = tensor(1, 2**20, 2), [tensor(8, 2**10), tensor(8, 2)]
    hx = (state, state) if function is f.lstm else state
    weights = weights if function is f.lstm else [w[:6] for w in weights]
    return function(tensor(*SEQUENCES), hx, weights, False, 1, 0.0, False, False, False)


# By the operator's name: a call of tensors that `tensor(*shape)` makes, of one number, and a shape.
CALLS = {
    "conv2d": (lambda t: f.conv2d(t(*PLANES), t(8, 4, 3, 3)), PLANES),
    "conv2d_relu": (lambda t: f.conv2d_relu(t(*PLANES), t(8, 4, 3, 3), t(8)), PLANES),
    "conv2d_relu_max_pool2d": (
        lambda t: f.conv2d_relu_max_pool2d(t(*PLANES), t(8, 4, 3, 3)), PLANES),
    "conv2d_backward": (
        lambda t: ops.conv2d_backward(t(*PLANES), t(*PLANES), t(4, 4, 1, 1), None, [1, 1], [0, 0],
                                      [1, 1], 1, [True, True, True]), PLANES),
    "max_pool2d": (lambda t: f.max_pool2d(t(*PLANES), 2), PLANES),
    "linear": (lambda t: f.linear(t(*ROWS), t(8, 2**10)), ROWS),
    "linear_relu": (lambda t: f.linear_relu(t(*ROWS), t(8, 2**10), t(8)), ROWS),
    "linear_backward": (
        lambda t: ops.linear_backward(t(2**40, 8), t(*ROWS), t(8, 2**10), None,
                                      [True, True, False]), ROWS),
    "scaled_dot_product_attention": (
        lambda t: f.scaled_dot_product_attention(*(t(*PLANES) for _ in range(3))), PLANES),
    "lstm_cell": (
        lambda t: f.lstm_cell(t(*ROWS), (t(*STATES), t(*STATES)), t(8, 2**10), t(8, 2)), ROWS),
    "gru_cell": (lambda t: f.gru_cell(t(*ROWS), t(*STATES), t(6, 2**10), t(6, 2)), ROWS),
    "lstm": (lstm, SEQUENCES),
    "gru": (lambda t: lstm(t, f.gru), SEQUENCES),
}  # fmt: skip


@on_devices
@pytest.mark.parametrize("op", CALLS)
def test_the_exception_names_operator_shape_and_reason(op, device):
    call, shape = CALLS[op]
    missing = torch.OutOfMemoryError if device == "cuda" else RuntimeError
    with pytest.raises(missing, match=r"(?i)memory") as caught:
        call(lambda *sizes: torch.zeros((), device=device).expand(sizes))
    assert type(caught.value) is missing
    words = rf"\({op} of .*\[{', '.join(map(str, shape))}\].* on {device}"
    assert re.search(words, str(caught.value)), caught.value


def ints(*sizes):
    return torch.zeros(sizes, dtype=torch.int32)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: f.conv2d(ints(1, 2, 4, 4), torch.zeros(3, 2, 3, 3)),
            "(conv2d of Int [1, 2, 4, 4], Float [3, 2, 3, 3] on cpu)",
        ),
        (
            lambda: f.conv2d_relu_max_pool2d(torch.zeros(1, 0, 4, 4), torch.zeros(3, 2, 3, 3)),
            "(conv2d_relu_max_pool2d of Float [1, 0, 4, 4], [3, 2, 3, 3] on cpu)",
        ),
        (
            lambda: f.linear_relu(torch.zeros(2, 3), ints(4, 3), torch.zeros(4)),
            "(linear_relu of Float [2, 3], Int [4, 3], Float [4] on cpu)",
        ),
        (
            lambda: f.linear(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(5)),
            "(linear of Float [2, 3], [4, 3], [5] on cpu)",
        ),
        (
            lambda: f.max_pool2d(torch.zeros(4, 4, dtype=torch.complex64), 2),
            "(max_pool2d of ComplexFloat [4, 4] on cpu)",
        ),
        (
            lambda: f.scaled_dot_product_attention(ints(2, 3), *torch.zeros(2, 2, 3)),
            "(scaled_dot_product_attention of Int [2, 3], Float [2, 3], [2, 3] on cpu)",
        ),
        (
            lambda: f.gru_cell(
                torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(12, 3), ints(12, 4)
            ),
            "(gru_cell of Float [2, 3], [2, 4], [12, 3], Int [12, 4] on cpu)",
        ),
    ],
)
def test_what_native_refuses_for_us_is_named_once(call, words, inference):
    with torch.inference_mode(inference), pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value).count(words) == 1, caught.value


def test_what_names_its_operator_already_is_left_alone():
    with pytest.raises(RuntimeError) as caught:
        f.linear(torch.zeros(2, 3), torch.zeros(4, 5))
    assert str(caught.value).startswith("linear: ") and " of Float " not in str(caught.value)
