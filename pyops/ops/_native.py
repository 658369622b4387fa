"""PyTorch's own functions, under the names and with the arguments of our operators."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyops._insight import note_native
from pyops._overrides import REASON


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of whose calls `explain` hears."""

    @wraps(function)
    def call(input: Tensor, *args: Any, **options: Any) -> Any:
        note_native(function.__name__, input, REASON)
        return function(input, *args, **options)

    return call


linear = _noted(functional.linear)
conv2d = _noted(functional.conv2d)
scaled_dot_product_attention = _noted(functional.scaled_dot_product_attention)
lstm = _noted(torch.lstm)
gru = _noted(torch.gru)
lstm_cell = _noted(torch.lstm_cell)
gru_cell = _noted(torch.gru_cell)


@_noted
def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.relu(functional.linear(input, weight, bias))


@_noted
def conv2d_relu(input: Tensor, *args: Any) -> Tensor:
    return functional.relu(functional.conv2d(input, *args))


@_noted
def conv2d_relu_max_pool2d(
    input: Tensor,
    *args: Any,
    kernel_size: Any,
    pool_stride: Any,
    pool_padding: Any,
    pool_dilation: Any,
    ceil_mode: bool,
) -> Any:
    full = functional.relu(functional.conv2d(input, *args))
    windows = (kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    return functional.max_pool2d(full, *_with_stride(*windows))


@_noted
def max_pool2d(input: Tensor, *windows: Any) -> Any:
    return functional.max_pool2d(input, *_with_stride(*windows))


@_noted
def max_pool2d_with_indices(input: Tensor, *windows: Any) -> Any:
    return functional.max_pool2d(input, *_with_stride(*windows), return_indices=True)


def _with_stride(kernel_size: Any, stride: Any, *rest: Any) -> tuple[Any, ...]:
    """A window's arguments, where the functions say None for what our operators call ()."""
    return kernel_size, stride or None, *rest
