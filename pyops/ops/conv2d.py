"""conv2d and its fusions with ReLU and max pooling."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyops.ops import _native as native
from pyops.ops._direct import operators
from pyops.ops._register import register_fake, register_flops
from pyops.ops._size2 import Size2, pair


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional cross-correlation, as `torch.nn.functional.conv2d`.

    input (N, C, H, W) or (C, H, W), weight (O, C/groups, kh, kw), bias (O) -> (N, O, oh, ow);
    float64, float32, bfloat16, float16; the last two are summed in float32. The result is
    channels_last when the input or the weight is.
    """
    return _convolve("conv2d", input, weight, bias, stride, padding, dilation, groups)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """`relu(conv2d(...))` in one pass; arguments, shapes and dtypes as `conv2d`.

    The backward masks the gradient while it is read, so neither direction has a pass for the ReLU.
    """
    return _convolve("conv2d_relu", input, weight, bias, stride, padding, dilation, groups)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    kernel_size: Size2 = 2,
    pool_stride: Size2 | None = None,
    pool_padding: Size2 = 0,
    pool_dilation: Size2 = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`max_pool2d(relu(conv2d(...)), kernel_size, pool_stride, ...)`, the convolution never stored.

    The first arguments are `conv2d`'s; kernel_size and those after it are `max_pool2d`'s, where
    pool_stride is kernel_size unless given. Training keeps the pooled result and where each maximum
    came from, one byte per element (four for windows of more than 255).
    """
    return _convolve(
        "conv2d_relu_max_pool2d",
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        kernel_size=pair(kernel_size),
        pool_stride=() if pool_stride is None else pair(pool_stride),
        pool_padding=pair(pool_padding),
        pool_dilation=pair(pool_dilation),
        ceil_mode=ceil_mode,
    )


def _convolve(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size2,
    padding: Size2 | str,
    dilation: Size2,
    groups: int,
    **pooling: Any,
) -> Tensor:
    """`op` by the quickest way that does for this call and its kind of padding."""
    ops = operators(input, weight, bias)
    call: Callable[..., Tensor] = getattr(ops, op)
    if not isinstance(padding, str):
        padding = pair(padding)
    elif ops is not native:
        call = getattr(torch.ops.pyops, op).padding
    return call(input, weight, bias, pair(stride), padding, pair(dilation), groups, **pooling)


_AXES = ((0, -2), (-1, -1))  # of an argument with one or two integers, and of a shape


def _output_shape(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, ...]:
    spatial = (
        (input.shape[axis] + 2 * padding[i] - dilation[i] * (weight.shape[axis] - 1) - 1)
        // stride[i]
        + 1
        for i, axis in _AXES
    )
    return (*input.shape[:-3], weight.shape[0], *spatial)


def _memory_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    formats = (torch._prims_common.suggest_memory_format(t) for t in (input, weight))
    last = torch.channels_last in formats
    return torch.channels_last if last else torch.contiguous_format


def _empty(like: Tensor, shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _gradients(input: Tensor, weight: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    memory_format = _memory_format(input, weight)
    return (
        _empty(input, input.shape, memory_format) if wanted[0] else None,
        _empty(weight, weight.shape, memory_format) if wanted[1] else None,
        weight.new_empty(weight.shape[:1]) if wanted[2] else None,
    )


@register_fake("conv2d")
@register_fake("conv2d_relu")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    batch = input if input.dim() == 4 else input.unsqueeze(0)
    shape = _output_shape(batch, weight, stride, padding, dilation)
    result = _empty(input, shape, _memory_format(batch, weight))
    return result if input.dim() == 4 else result.squeeze(0)


@register_fake("conv2d_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    relu_output: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    return _gradients(input, weight, wanted)


@register_fake("conv2d_relu_max_pool2d_with_offsets")
def _pooled_with_offsets(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    pool_dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    full = input.new_empty(_output_shape(input, weight, stride, padding, dilation))
    windows = (kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    pooled, _indices = torch.ops.aten.max_pool2d_with_indices(full, *windows)
    result = _empty(input, pooled.shape, _memory_format(input, weight))
    offset_type = torch.int32 if kernel_size[0] * kernel_size[-1] > 255 else torch.uint8
    return result, torch.empty_like(result, dtype=offset_type)


@register_fake("conv2d_relu_max_pool2d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    kernel_size: Sequence[int] = (2, 2),
    pool_stride: Sequence[int] = (),
    pool_padding: Sequence[int] = (0, 0),
    pool_dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    batch = input if input.dim() == 4 else input.unsqueeze(0)
    pooled, _offsets = _pooled_with_offsets(
        batch,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        kernel_size,
        pool_stride,
        pool_padding,
        pool_dilation,
        ceil_mode,
    )
    return pooled if input.dim() == 4 else pooled.squeeze(0)


@register_fake("conv2d_relu_max_pool2d_backward")
def _(
    grad: Tensor,
    offsets: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    pool_dilation: Sequence[int],
    ceil_mode: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    return _gradients(input, weight, wanted)


@register_flops(
    "conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_with_offsets"
)
def _flops(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **result: Any
) -> int:
    return 2 * math.prod(_output_shape(input, weight, *geometry[:3])) * weight[0].numel()


@register_flops("conv2d_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    relu_output: Tensor | None,
    *geometry: Any,
    **result: Any,
) -> int:
    return _flops(input, weight, None, *geometry) * sum(geometry[-1][:2])


@register_flops("conv2d_relu_max_pool2d_backward")
def _(
    grad: Tensor, offsets: Tensor, input: Tensor, weight: Tensor, *geometry: Any, **result: Any
) -> int:
    return _flops(input, weight, None, *geometry) * sum(geometry[-1][:2])
