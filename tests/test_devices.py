"""A tensor that lies elsewhere than the others: refused, and never passed over."""

import pytest
import torch

import pyops
import pyops.functional as P


def rnn(function):
    return lambda x, *rest: function(x, *states(rest), False, 1, 0.0, False, False, False)


def packed(function):
    sizes = torch.tensor([3, 3])
    return lambda x, *rest: function(x, sizes, *states(rest), False, 1, 0.0, False, False)


def states(rest):
    """hx and params: of an LSTM, with its two states, or a GRU."""
    return (rest[:2], rest[2:]) if len(rest) == 4 else (rest[0], rest[1:])


LSTM, GRU = ((1, 3, 2), (1, 3, 2), (8, 4), (8, 2)), ((1, 3, 2), (6, 4), (6, 2))

# Of each function a call, and the shapes of its tensors.
CALLS = {
    "conv2d": (P.conv2d, [(2, 3, 5, 5), (4, 3, 3, 3), (4,)]),
    "conv2d_relu": (P.conv2d_relu, [(2, 3, 5, 5), (4, 3, 3, 3), (4,)]),
    "conv2d_relu_max_pool2d": (P.conv2d_relu_max_pool2d, [(2, 3, 5, 5), (4, 3, 3, 3), (4,)]),
    "linear": (P.linear, [(2, 3), (4, 3), (4,)]),
    "linear_relu": (P.linear_relu, [(2, 3), (4, 3), (4,)]),
    "scaled_dot_product_attention": (
        P.scaled_dot_product_attention,
        [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (3, 3)],
    ),
    "lstm_cell": (
        lambda x, h, c, *weights: P.lstm_cell(x, (h, c), *weights),
        [(3, 4), (3, 2), (3, 2), (8, 4), (8, 2), (8,), (8,)],
    ),
    "gru_cell": (P.gru_cell, [(3, 4), (3, 2), (6, 4), (6, 2), (6,), (6,)]),
    "lstm": (rnn(P.lstm), [(2, 3, 4), *LSTM]),
    "gru": (rnn(P.gru), [(2, 3, 4), *GRU]),
    "lstm, packed": (packed(P.lstm), [(6, 4), *LSTM]),
    "gru, packed": (packed(P.gru), [(6, 4), *GRU]),
}
MIXED = [(op, stray) for op, (_call, shapes) in CALLS.items() for stray in range(len(shapes))]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("op, stray", MIXED)
def test_one_meta_tensor_is_refused(op, stray, inference):
    """Its device would answer for all, with a result that nobody computed."""
    call, shapes = CALLS[op]
    tensors = [
        torch.rand(shape, device="meta" if i == stray else "cpu") for i, shape in enumerate(shapes)
    ]
    with (
        torch.inference_mode(inference),
        pytest.raises(RuntimeError, match=rf"{op.partition(',')[0]}\b.*(meta|device)"),
    ):
        call(*tensors)


@pytest.mark.parametrize("op", CALLS)
def test_all_on_meta_are_taken(op):
    call, shapes = CALLS[op]
    result = call(*(torch.rand(shape, device="meta") for shape in shapes))
    for t in (result,) if isinstance(result, torch.Tensor) else result:
        assert t.is_meta


# A call as above, and the one of its shapes that does not fit.
MISFITS = [
    ("conv2d", 0, (2, 5, 5, 5)),
    ("conv2d_relu", 0, (2, 3, 5, 2)),
    ("conv2d_relu_max_pool2d", 1, (4, 2, 3, 3)),
    ("conv2d_relu_max_pool2d", 0, (2, 3, 3, 3)),
    ("linear", 1, (4, 5)),
    ("scaled_dot_product_attention", 1, (1, 2, 3, 5)),
    ("lstm_cell", 4, (9, 2)),
    ("gru_cell", 5, (5,)),
    ("lstm", 3, (8, 5)),
    ("gru", 1, (1, 4, 2)),
    ("lstm, packed", 4, (7, 2)),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op, which, shape", MISFITS)
def test_shapes_are_checked_where_nothing_is_computed(op, which, shape, device):
    call, shapes = CALLS[op]
    shapes = [shape if i == which else right for i, right in enumerate(shapes)]
    with pytest.raises(RuntimeError):
        call(*(torch.rand(shape, device=device) for shape in shapes))


def test_an_export_refuses_what_would_not_run():
    layer = pyops.nn.Conv2d(3, 4, 3)
    with pytest.raises(RuntimeError, match=r"conv2d: weight must be .* with C=2"):
        torch.export.export(layer, (torch.rand(1, 2, 8, 8),))
