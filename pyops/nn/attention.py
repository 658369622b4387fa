"""MultiheadAttention."""

from typing import Any

import torch
from torch import Tensor

from pyops import functional
from pyops._insight import note_native
from pyops._overrides import REASON, overridden
from pyops.nn._rebind import rebind

native: Any = torch.nn.functional  # with its private parts, which its type stub leaves out

multi_head_attention_forward = rebind(
    native.multi_head_attention_forward,
    __name__,
    linear=functional.linear,
    scaled_dot_product_attention=functional.scaled_dot_product_attention,
    _in_projection=rebind(native._in_projection, __name__, linear=functional.linear),
    _in_projection_packed=rebind(native._in_projection_packed, __name__, linear=functional.linear),
)
"""`torch.nn.functional.multi_head_attention_forward` on our linear and attention."""


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`.

    `need_weights=False`, as in the Transformer layers, runs the attention kernel and no copy around
    it. When the weights are wanted they are formed by torch's own formula, at inference by its
    kernel for the whole layer. Nested tensors run natively, and so does a subclass with its own
    `__torch_function__`, which sees the layer as torch's function.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(attention output, weights or None), shapes as in torch."""
        options: dict[str, Any] = {
            "key_padding_mask": key_padding_mask,
            "need_weights": need_weights,
            "attn_mask": attn_mask,
            "average_attn_weights": average_attn_weights,
            "is_causal": is_causal,
        }
        if query.is_nested or key.is_nested or value.is_nested:
            note_native("MultiheadAttention", query, "nested tensor")
            return super().forward(query, key, value, **options)
        out_proj: Any = self._modules["out_proj"]  # by its attribute it takes longer than the rest
        weights = (*self._parameters.values(), *out_proj._parameters.values())
        if overridden(query, key, value, *weights):
            note_native("MultiheadAttention", query, REASON)
            return super().forward(query, key, value, **options)
        if need_weights and not self.training and not torch.is_grad_enabled():
            note_native("MultiheadAttention", query, "need_weights")
            return super().forward(query, key, value, **options)
        plain = not need_weights and self.bias_k is None and not self.add_zero_attn
        if plain and self._fits(query, key, value, key_padding_mask, attn_mask, is_causal):
            return self._attend(query, key, value, key_padding_mask, attn_mask, is_causal), None
        if need_weights:
            note_native("scaled_dot_product_attention", query, "need_weights")
        return self._forward_in_general(query, key, value, **options)

    def _fits(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> bool:
        """Whether the arguments are batched and consistent; the rest, errors too, is torch's."""
        if not query.dim() == key.dim() == value.dim() == 3:
            return False
        batch, length = (0, 1) if self.batch_first else (1, 0)
        N, L, S = query.size(batch), query.size(length), key.size(length)
        return (
            (query.size(-1), key.size(-1), value.size(-1)) == (self.embed_dim, self.kdim, self.vdim)
            and key.shape[:2] == value.shape[:2]
            and key.size(batch) == N
            and (key_padding_mask is None or key_padding_mask.shape == (N, S))
            and (attn_mask is None or attn_mask.shape in ((L, S), (N * self.num_heads, L, S)))
            and not (is_causal and attn_mask is None)
        )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))
        is_causal = is_causal and key_padding_mask is None
        mask = None if is_causal else self._merge(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        y = y.permute((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)).flatten(2)
        return functional.linear(y, self.out_proj.weight, self.out_proj.bias)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, by as few products as the identities among them allow."""
        if self._qkv_same_embed_dim and query is key is value:
            packed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
            return packed.chunk(3, dim=-1)
        E, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if self._qkv_same_embed_dim and key is value:
            bias_q, bias_kv = (None, None) if bias is None else bias.split((E, 2 * E))
            weight_q, weight_kv = weight.split((E, 2 * E))
            packed = functional.linear(key, weight_kv, bias_kv)
            return functional.linear(query, weight_q, bias_q), *packed.chunk(2, dim=-1)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = weight.chunk(3) if self._qkv_same_embed_dim else separate
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(map(functional.linear, (query, key, value), weights, biases))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, L, E), or (L, N, E) unless batch_first, -> (N, H, L, D), a view."""
        heads = x.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.permute((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _merge(
        self, q: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, broadcast to (N, H, L, S)."""
        dtype = native._none_or_dtype(attn_mask)
        padding = native._canonical_mask(
            key_padding_mask, "key_padding_mask", dtype, "attn_mask", q.dtype
        )
        mask = native._canonical_mask(attn_mask, "attn_mask", None, "", q.dtype, False)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (q.size(0), self.num_heads))
        if padding is None:
            return mask
        padding = padding[:, None, None, :]
        return padding if mask is None else mask + padding

    def _forward_in_general(
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        swap = self.batch_first and query.dim() == 3
        if swap:
            # One view per tensor: torch recognises self-attention by identity.
            views = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = views[id(query)], views[id(key)], views[id(value)]
        output, weights = multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            **options,
        )
        return output.transpose(0, 1) if swap else output, weights
