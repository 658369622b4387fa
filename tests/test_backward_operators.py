"""Backward operators, called past the autograd that brings their arguments about.

What kernels would read beyond its end is refused. Attention's are in test_attention_operators.py.
"""

import pytest
import torch

import pyops
from pyops.functional import max_pool2d
from suite import isas

ops = torch.ops.pyops
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)
POOL = ([2, 2], [2, 2], [0, 0], [1, 1])


def conv2d(grad=(2, 4, 6, 6), relu_output=(2, 4, 6, 6), dtype=torch.float32):
    x, w = torch.rand(2, 3, 6, 6), torch.rand(4, 3, 3, 3)
    mask = torch.rand(relu_output)
    ops.conv2d_backward(torch.rand(grad, dtype=dtype), x, w, mask, *GEOMETRY, [True] * 3)


def pooled(grad=(2, 4, 3, 3), dtype=torch.float32):
    x, w = torch.rand(2, 3, 6, 6), torch.rand(4, 3, 3, 3)
    grad, offsets = torch.rand(grad, dtype=dtype), torch.zeros(2, 4, 3, 3, dtype=torch.uint8)
    ops.conv2d_relu_max_pool2d_backward(
        grad, offsets, x, w, *GEOMETRY, *POOL, False, wanted=[True] * 3
    )


def max_pool(grad=(2, 3, 3, 3), size=(6, 6), channels_last=False):
    grad = torch.rand(grad)
    ops.max_pool2d_backward(grad, torch.zeros_like(grad).long(), size, *POOL, channels_last)


def layer(cell="lstm", **others):
    """The backward of a layer on what its forward gave, but for `others`."""
    x, h, c = torch.rand(5, 2, 3), torch.rand(2, 4), torch.rand(2, 4) if cell == "lstm" else None
    gates = 16 if cell == "lstm" else 12
    given = x, h, c, torch.rand(gates, 3), torch.rand(gates, 4), None, None, None, None
    y, hn, cn, reserve = ops.rnn_layer(*given, False, True)
    kept = {"grad_output": y, "grad_hn": hn, "grad_cn": cn, "output": y, "reserve": reserve}
    grads = [others.get(name, kept[name]) for name in ("grad_output", "grad_hn", "grad_cn")]
    rest = [others.get(name, kept[name]) for name in ("output", "reserve")]
    ops.rnn_layer_backward(*grads, *given, *rest, False, [True] * 3 + [False] * 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv2d(grad=(2, 4, 6, 5)), "conv2d_backward: grad must have the output's shape"),
        (lambda: conv2d(dtype=torch.half), "conv2d_backward: grad must have the input's dtype"),
        (lambda: conv2d(relu_output=(2, 4, 1, 6)), "relu_output must have the output's shape"),
        (lambda: pooled(grad=(2, 4, 2, 3)), "max_pool2d_backward: grad and offsets must be"),
        (lambda: pooled(dtype=torch.half), "grad must have the input's dtype Float, got Half"),
        (lambda: max_pool(size=(6, 4)), r"input_size must be \(H, W\) .* got \[6, 4\]"),
        (lambda: max_pool(size=(600, 6)), "max_pool2d_backward: input_size must be"),
        (lambda: max_pool(grad=(3, 3)), r"grad must be \(N, C, OH, OW\) or"),
        (lambda: max_pool(grad=(3, 3, 3), channels_last=True), r"grad must be \(N, C, OH, OW\)"),
        (lambda: layer(grad_output=torch.rand(5, 2, 3)), "lstm_backward: grad_output must be"),
        (lambda: layer(grad_output=torch.rand(5, 2, 4).half()), "grad_output must be .* Float"),
        (lambda: layer(grad_hn=torch.rand(1, 4)), "lstm_backward: grad_hn must be"),
        (lambda: layer(grad_cn=torch.rand(2, 3)), "lstm_backward: grad_cn must be"),
        (lambda: layer(output=torch.rand(5, 1, 4)), "lstm_backward: output must be"),
        (lambda: layer(reserve=torch.rand(10, 20).half()), r"reserve must be \[10, 20\] Float"),
        (lambda: layer("gru", reserve=torch.rand(10, 12)), "gru_backward: reserve must be"),
    ],
)
def test_kernels_get_what_they_take(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("call", [conv2d, pooled, max_pool, layer, lambda: layer("gru")])
def test_what_fits_is_taken(call):
    call()
    with pyops.isa_cap("scalar"):
        call()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [5, 6, 7])
def test_sizes_of_either_mode_are_windows(size, ceil_mode):
    x = torch.rand(1, 1, size, size, requires_grad=True)
    max_pool2d(x, 3, 2, 1, ceil_mode=ceil_mode).sum().backward()
    assert x.grad.sum() > 0


@pytest.mark.parametrize("isa", isas())
def test_no_image(isa):
    """The user's operators leave an empty batch to native; sums over it are zero."""
    x, w = torch.rand(0, 16, 10, 10), torch.rand(16, 16, 3, 3)
    shape = [0, 16, 10, 10], [16, 16, 3, 3], [16]
    with pyops.isa_cap(isa):
        grads = ops.conv2d_backward(x, x, w, x, *GEOMETRY, [True] * 3)
        y, offsets = ops.conv2d_relu_max_pool2d_with_offsets(x, w, None, *GEOMETRY, *POOL, False)
        pooled_grads = ops.conv2d_relu_max_pool2d_backward(
            y, offsets, x, w, *GEOMETRY, *POOL, False, [True] * 3
        )
    for some in (grads, pooled_grads):
        for gradient, sizes in zip(some, shape, strict=True):
            assert torch.equal(gradient, torch.zeros(sizes))
