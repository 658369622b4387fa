"""conv2d and its fusions with ReLU and max pooling."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyops.ops._register import register_fake

Size2 = int | Sequence[int]


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
    if isinstance(padding, str):
        return torch.ops.pyops.conv2d.padding(
            input, weight, bias, stride, padding, dilation, groups
        )
    return torch.ops.pyops.conv2d.default(input, weight, bias, stride, padding, dilation, groups)


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
    op = torch.ops.pyops.conv2d_relu
    if isinstance(padding, str):
        return op.padding(input, weight, bias, stride, padding, dilation, groups)
    return op.default(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Size2) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]


def _output_shape(
    input: Tensor, weight: Tensor, stride: Size2, padding: Size2, dilation: Size2
) -> tuple[int, ...]:
    pairs = zip(_pair(stride), _pair(padding), _pair(dilation), strict=True)
    spatial = [
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, kernel, (s, p, d) in zip(input.shape[-2:], weight.shape[-2:], pairs, strict=True)
    ]
    return (*input.shape[:-3], weight.shape[0], *spatial)


def _memory_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    formats = (torch._prims_common.suggest_memory_format(t) for t in (input, weight))
    last = torch.channels_last in formats
    return torch.channels_last if last else torch.contiguous_format


def _empty(like: Tensor, shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@register_fake("conv2d")
@register_fake("conv2d_relu")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 = 0,
    dilation: Size2 = 1,
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
    stride: Size2,
    padding: Size2,
    dilation: Size2,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    memory_format = _memory_format(input, weight)
    return (
        _empty(input, input.shape, memory_format) if wanted[0] else None,
        _empty(weight, weight.shape, memory_format) if wanted[1] else None,
        weight.new_empty(weight.shape[:1]) if wanted[2] else None,
    )
