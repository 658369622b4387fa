"""max_pool2d."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyops.ops._direct import operators
from pyops.ops._register import register_fake
from pyops.ops._size2 import Size2, pair

_native = torch.ops.aten.max_pool2d_with_indices


def max_pool2d(
    input: Tensor,
    kernel_size: Size2,
    stride: Size2 | None = None,
    padding: Size2 = 0,
    dilation: Size2 = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum of every window, as `torch.nn.functional.max_pool2d`, indices included.

    input (N, C, H, W) or (C, H, W) -> (N, C, OH, OW) or (C, OH, OW), in the input's memory format;
    float64, float32, bfloat16, float16. Training saves one byte per output, neither the input nor
    64-bit indices; the gradient is deterministic. A window that dilation puts wholly into the
    padding is -inf as in torch, and passes no gradient (torch adds it to some other element).
    """
    op = "max_pool2d_with_indices" if return_indices else "max_pool2d"
    stride = () if stride is None else pair(stride)
    call = getattr(operators(input), op)
    pooled: Tensor | tuple[Tensor, Tensor] = call(
        input, pair(kernel_size), stride, pair(padding), pair(dilation), ceil_mode
    )
    return pooled


@register_fake("max_pool2d")
def _(input: Tensor, *windows: object) -> Tensor:
    return _native(input, *windows)[0]


@register_fake("max_pool2d_with_indices")
def _(input: Tensor, *windows: object) -> tuple[Tensor, Tensor]:
    return _native(input, *windows)


@register_fake("max_pool2d_with_taps")
def _(input: Tensor, *windows: object) -> tuple[Tensor, Tensor]:
    output, indices = _native(input, *windows)
    return output, torch.empty_like(indices, dtype=torch.uint8)


@register_fake("max_pool2d_backward")
def _(grad: Tensor, argmax: Tensor, input_size: Sequence[int], *windows: object) -> Tensor:
    shape = (*grad.shape[:-2], *input_size)
    return torch.empty(
        shape,
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last if windows[-1] else torch.contiguous_format,
    )
