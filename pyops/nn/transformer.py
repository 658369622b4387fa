"""TransformerEncoderLayer and TransformerDecoderLayer."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as native

from pyops import functional
from pyops._insight import note_native
from pyops.nn.attention import MultiheadAttention
from pyops.nn.container import is_plain
from pyops.nn.linear import Linear


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`; nested tensors run natively.

    `torch.nn.TransformerEncoder` makes such of a batch with `src_key_padding_mask` at inference,
    unless it has `enable_nested_tensor=False`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self.self_attn, self.linear1, self.linear2)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """`src` encoded, in its shape; masks as in torch."""
        if src.is_nested:
            note_native("TransformerEncoderLayer", src, "nested tensor")
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        # torch's forward would, at inference, hand the whole layer to one native kernel.
        masks = (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks))
        return self.norm2(x + self._ff_block(x))

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(_feed_forward(self, x))


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self.self_attn, self.multihead_attn, self.linear1, self.linear2)

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout3(_feed_forward(self, x))


def _adopt(*modules: torch.nn.Module) -> None:
    for module in modules:
        ours = MultiheadAttention if isinstance(module, torch.nn.MultiheadAttention) else Linear
        module.__class__ = ours


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    linear, activation = layer.linear1, layer.activation
    relu = activation in (native.relu, torch.relu) or (
        type(activation) is torch.nn.ReLU and is_plain(activation)
    )
    if relu and type(linear) is Linear and is_plain(linear):
        hidden = functional.linear_relu(x, linear.weight, linear.bias)
    else:
        hidden = activation(linear(x))
    return layer.linear2(layer.dropout(hidden))
