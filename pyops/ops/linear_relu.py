"""linear and linear_relu."""

from typing import Any

from torch import Tensor

from pyops.ops._direct import operators
from pyops.ops._register import register_fake, register_flops


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias`, as `torch.nn.functional.linear`.

    input (*, K), weight (N, K), bias (N) -> (*, N); float64, float32, bfloat16, float16.
    bfloat16 and float16 are summed in float32. The result is contiguous.
    """
    return operators(input, weight, bias).linear(input, weight, bias)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`relu(input @ weight.T + bias)` in one pass; shapes and dtypes as `linear`.

    The backward masks the gradient while it is read, so neither direction has a pass for the ReLU.
    """
    return operators(input, weight, bias).linear_relu(input, weight, bias)


@register_fake("linear")
@register_fake("linear_relu")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@register_fake("linear_backward")
def _(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    relu_output: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    n, k = grad.shape[-1], _in_features(input, weight)
    shapes = (*grad.shape[:-1], k), (n, k), (n,)
    return tuple(
        grad.new_empty(shape) if want else None for shape, want in zip(shapes, wanted, strict=True)
    )


def _in_features(*tensors: Tensor | None) -> int:
    return next((t.shape[-1] for t in tensors if t is not None), 0)


@register_flops("linear", "linear_relu")
def _(input: Tensor, weight: Tensor, *rest: Any, **result: Any) -> int:
    return 2 * input.numel() * weight.shape[0]


@register_flops("linear_backward")
def _(grad: Tensor, input: Tensor | None, weight: Tensor | None, *rest: Any, **result: Any) -> int:
    return 2 * grad.numel() * _in_features(input, weight) * sum(rest[-1][:2])
