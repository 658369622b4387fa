"""Arguments as large as their types allow, or as empty, and tensors that overlap themselves."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from pyops.functional import conv2d, conv2d_relu_max_pool2d, scaled_dot_product_attention
from suite import isas

ops = torch.ops.pyops


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [2**40, 2**62, 2**63 - 1])
def test_stride_beyond_the_input(stride, groups, isa):
    """There is one output, whatever the stride."""
    x = torch.randn(2, 4, 8, 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=torch.double, requires_grad=True)

    def results(function):
        y = function(x, weight, stride=stride, groups=groups)
        return [y, *torch.autograd.grad(y.square().sum(), (x, weight))]

    with pyops.isa_cap(isa):
        ours = results(conv2d)
    torch.testing.assert_close(ours, results(F.conv2d), rtol=1e-9, atol=1e-12)


def test_window_of_more_taps_than_an_offset_counts():
    """2^32 and more of them: their numbers fit no 32 bits, so the call is native's."""
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    with pyops.explain() as log:
        y = conv2d_relu_max_pool2d(x, torch.ones(1, 1, 1, 1), kernel_size=70000, pool_padding=35000)
    y.sum().backward()
    assert "over 2^31 - 1 taps" in str(log)
    assert x.grad.item() == 1


@pytest.mark.parametrize("isa", isas())
def test_offsets_of_another_call_write_nowhere_else(isa):
    grad, x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    offsets = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    geometry, pool = ([1, 1], [0, 0], [1, 1], 1), ([2, 2], [2, 2], [0, 0], [1, 1])
    with pyops.isa_cap(isa):
        grad_x, *_ = ops.conv2d_relu_max_pool2d_backward(
            grad, offsets, x, weight, *geometry, *pool, False, [True] * 3
        )
    assert torch.equal(grad_x, torch.zeros_like(x))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("batch", [4, 6])
def test_projection_to_nothing(isa, batch):
    """Gates are then what the input and the biases make of them."""
    x, h, c = torch.randn(3, batch, 5), torch.zeros(batch, 0), torch.randn(batch, 8)
    w_ih, w_hh, w_hr = torch.randn(32, 5), torch.zeros(32, 0), torch.zeros(0, 8)
    b_ih, b_hh = torch.randn(2, 32)
    with pyops.isa_cap(isa):
        y, _, cn, _ = ops.rnn_layer(
            x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, None, reverse=False, save=False
        )
    assert y.shape == (3, batch, 0)
    for step in x:
        i, f, g, _ = F.linear(step, w_ih, b_ih + b_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    torch.testing.assert_close(cn, c)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("shape", [(3, 8), (8, 24)])
def test_queries_that_are_sliding_windows(isa, shape):
    """Strides (1, 1), which no result can have; native's kernel writes its own all the same."""
    length, width = shape
    query = torch.randn(1, 2, length + width - 1).unfold(-1, width, 1)
    key, value = torch.randn(2, 1, 2, 5, width)
    with pyops.isa_cap(isa):
        ours = scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(query.contiguous(), key, value))
