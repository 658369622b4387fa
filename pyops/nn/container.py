"""Sequential, the container that fuses neighbours."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from pyops import functional
from pyops.nn.conv import Conv2d, ConvReLU2d, convolve
from pyops.nn.linear import Linear
from pyops.nn.pooling import MaxPool2d


class Sequential(torch.nn.Sequential):
    """`torch.nn.Sequential`; runs Conv2d + ReLU (+ MaxPool2d) and Linear + ReLU in one pass.

    Fusion is a matter of each forward, not of the modules: all stay in place, unchanged, and can be
    called, indexed, shared or replaced as ever. A hook on one of the neighbours, or a method of it
    replaced, also later, keeps them apart.
    """

    def forward(self, input: Any) -> Any:
        """Every module in turn."""
        modules = list(self)
        while modules:
            length, call = _fusion(*modules[:3])
            input = call(input)
            del modules[:length]
        return input

    def __add__(self, other: Any) -> "Sequential":
        """The modules of both, in one that fuses them."""
        return _ours(super().__add__(other))

    def __mul__(self, other: int) -> "Sequential":
        """The modules, `other` times."""
        return _ours(super().__mul__(other))


def _ours(made: torch.nn.Sequential) -> Sequential:
    """What torch made of one of ours and knows by the name of its own class."""
    made.__class__ = Sequential
    return cast("Sequential", made)


def _fusion(
    first: Any, second: Any = None, third: Any = None
) -> tuple[int, Callable[[Any], Tensor]]:
    """How many of these neighbours one call serves, and that call."""
    relu = type(second) is torch.nn.ReLU and is_plain(first, second)
    if type(first) is Linear and relu:
        return 2, lambda input: functional.linear_relu(input, first.weight, first.bias)
    if type(first) is Conv2d and relu:
        if _is_pool(third):
            return 3, lambda input: _convolve_and_pool(first, third, input)
        return 2, lambda input: convolve(
            first, functional.conv2d_relu, input, first.weight, first.bias
        )
    if type(first) is ConvReLU2d and _is_pool(second) and is_plain(first):
        return 2, lambda input: _convolve_and_pool(first, second, input)
    return 1, first


_LAYERS: tuple[type[torch.nn.Module], ...] = (torch.nn.ReLU, Conv2d, ConvReLU2d, MaxPool2d, Linear)
_FORWARD = {cls: cls.forward for cls in _LAYERS}


def is_plain(*modules: torch.nn.Module) -> bool:
    """Whether calling each module, one of a layer's classes, is the layer and nothing else: it has
    no hook, and no step of the call is replaced on it, nor the forward on its class.
    """
    return not _has_any_global_hook() and not any(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or module._compiled_call_impl
        or "_call_impl" in module.__dict__
        or "forward" in module.__dict__
        or "_conv_forward" in module.__dict__
        or type(module).forward is not _FORWARD.get(type(module))
        for module in modules
    )


def _is_pool(module: Any) -> bool:
    return type(module) is MaxPool2d and not module.return_indices and is_plain(module)


def _convolve_and_pool(conv: Conv2d, pool: MaxPool2d, input: Tensor) -> Tensor:
    return convolve(
        conv,
        functional.conv2d_relu_max_pool2d,
        input,
        conv.weight,
        conv.bias,
        kernel_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
        pool_dilation=pool.dilation,
        ceil_mode=pool.ceil_mode,
    )
