"""Conv2d and ConvReLU2d."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d`, every padding mode included."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, functional.conv2d, input, weight, bias)


class ConvReLU2d(Conv2d):
    """`relu(Conv2d(input))` in one pass; arguments and `state_dict` of `Conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, functional.conv2d_relu, input, weight, bias)


def convolve(
    layer: torch.nn.Conv2d,
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    **options: Any,
) -> Tensor:
    """`function`, conv2d or a fusion that begins with it, on the geometry of `layer`."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        edges = layer._reversed_padding_repeated_twice
        input = torch.nn.functional.pad(input, edges, mode=layer.padding_mode)
        padding = (0, 0)
    geometry = (layer.stride, padding, layer.dilation, layer.groups)
    return function(input, weight, bias, *geometry, **options)
