"""scaled_dot_product_attention."""

from typing import Any

import torch
from torch import Tensor

from pyops._insight import note_native
from pyops.ops import _native as native
from pyops.ops._direct import operators
from pyops.ops._register import register_fake, register_flops


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`dropout(softmax(query @ key.mT * scale + attn_mask)) @ value`, as
    `torch.nn.functional.scaled_dot_product_attention`.

    Nothing of size (L, S) is stored, in either direction, with any mask and with dropout; only the
    second derivative forms such matrices. A mask's broadcast dimensions are never expanded. An
    `attn_mask` together with `is_causal` holds both, and is refused where torch refuses it. Which
    elements dropout drops depends on one number drawn from torch's generator: reproducible, but not
    native's choice.

    query (…, H, L, D), key (…, G, S, D), value (…, G, S, E) -> (…, H, L, E), G = H unless
    `enable_gqa`; attn_mask bool (True: seen) or float, broadcastable to (…, H, L, S); float64,
    float32, bfloat16, float16, the last two computed in float32.

    Flash attention: Dao 2023, https://arxiv.org/abs/2307.08691.
    """
    ops = operators(query, key, value, attn_mask)
    if ops is not native and isinstance(query, Tensor) and query.is_nested:
        # Their attention lives above the dispatcher.
        note_native("scaled_dot_product_attention", query, "nested tensor")
        ops = torch.nn.functional
    return ops.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty_like_rows(x: Tensor) -> Tensor:
    """The gradient's layout: the tensor's own where that leaves its rows contiguous."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return x.new_empty(x.shape)
    like = torch.empty_like(x)
    return like if x.shape[-1] <= 1 or like.stride(-1) == 1 else x.new_empty(x.shape)


@register_fake("attention_forward")
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    query_layout: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = query.shape[:3]
    out = _empty_like_rows(query) if query_layout else query.new_empty((*rows, value.shape[3]))
    row_max = query.new_empty(rows, dtype=_accumulator(query))
    return out, row_max, torch.empty_like(row_max)


@register_fake("attention_backward")
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    row_max: Tensor,
    row_scale: Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    grads = [
        _empty_like_rows(x) if want else None
        for x, want in zip((query, key, value), wanted[:3], strict=True)
    ]
    grad_mask = mask.new_empty(mask.shape) if mask is not None and wanted[3] else None
    return (*grads, grad_mask)


@register_fake("attention_dropout")
def _(seed: Tensor, p: float, size: list[int]) -> Tensor:
    return seed.new_empty(size, dtype=torch.bool)


def _products(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int]:
    """Operations of scores, and of what multiplies them with the values."""
    pairs = 2 * query.shape[:3].numel() * key.shape[2]
    return pairs * query.shape[3], pairs * value.shape[3]


@register_flops("attention_forward")
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **result: Any) -> int:
    return sum(_products(query, key, value))


@register_flops("attention_backward")
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **result: Any) -> int:
    scores, weighted = _products(query, key, value)
    return 3 * scores + 2 * weighted  # the scores are computed again
