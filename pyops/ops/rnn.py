"""lstm, gru, lstm_cell and gru_cell."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyops import _C
from pyops.ops._direct import operators
from pyops.ops._register import register_fake, register_flops


def lstm(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A multi-layer LSTM, as `torch.lstm`, in both of its forms.

    lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    lstm(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)

    input (T, B, I), or (B, T, I) with batch_first; data (N, I) and batch_sizes (T), those of a
    `PackedSequence`. hx: h (layers*directions, B, H_out) and c (layers*directions, B, H), where
    H_out differs from H in an LSTM with projections. params, for each layer and direction:
    w_ih (4*H, I), w_hh (4*H, H_out), with has_biases b_ih and b_hh (4*H), with projections
    w_hr (H_out, H). Returns the output, (T, B, directions*H_out) or (N, directions*H_out), and h
    and c after the last step. float64, float32, bfloat16, float16; the latter two carry c and
    the gates in float32. Second derivatives and functorch's transforms work.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _form(*args, **options)("lstm", *args, **options)
    return outputs


def gru(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A multi-layer GRU, as `torch.gru`, in both of its forms.

    gru(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    gru(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)

    Shapes as for `lstm`, where hx is h alone and weights have 3*H rows.
    """
    outputs: tuple[Tensor, Tensor] = _form(*args, **options)("gru", *args, **options)
    return outputs


def _form(*args: Any, **options: Any) -> Callable[..., Any]:
    """Which form these arguments have: where the parameters come fourth, that of packed data."""
    if len(args) > 3:
        packed = isinstance(args[3], (tuple, list))
    else:
        packed = "batch_sizes" in options or (len(args) == 3 and "params" in options)
    return _packed if packed else _padded


def _padded(
    op: str,
    input: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    ops = operators(input, *_each(hx), *_each(params))
    return getattr(ops, f"{op}_input" if ops is _C else op)(input, hx, params, *options)


def _packed(
    op: str,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> Any:
    options = (has_biases, num_layers, dropout, train, bidirectional)
    ops = operators(data, batch_sizes, *_each(hx), *_each(params))
    name = f"{op}_data" if ops is _C else op
    return getattr(ops, name)(data, batch_sizes, hx, params, *options)


def _each(tensors: Any) -> Any:
    """Those of a sequence; what is none, right or wrong, by itself."""
    return tensors if isinstance(tensors, (tuple, list)) else (tensors,)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM in one pass, as `torch.lstm_cell`.

    input (B, I), hx: h and c (B, H), w_ih (4*H, I), w_hh (4*H, H), biases (4*H) -> h and c (B, H).
    """
    ops = operators(input, *_each(hx), w_ih, w_hh, b_ih, b_hh)
    return ops.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU in one pass, as `torch.gru_cell`.

    input (B, I), hx (B, H), w_ih (3*H, I), w_hh (3*H, H), biases (3*H) -> h (B, H).
    """
    ops = operators(input, hx, w_ih, w_hh, b_ih, b_hh)
    return ops.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


@register_fake("rnn_layer")
def _(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output = input.new_empty((*input.shape[:-1], h0.shape[1]))
    cn = h0.new_empty(c0.shape if c0 is not None else (0,))
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
    kept, hidden = (5, w_hh.shape[0] // 4) if c0 is not None else (4, w_hh.shape[0] // 3)
    rows = math.prod(input.shape[:-1])  # numel() would make of symbolic sizes those of one call
    reserve = input.new_empty((rows, kept * hidden) if save else (0,), dtype=accumulate)
    return output, h0.new_empty(h0.shape), cn, reserve


@register_fake("rnn_layer_backward")
def _(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    reverse: bool,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    inputs = (input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    return tuple(
        t.new_empty(t.shape) if want and t is not None else None
        for t, want in zip(inputs, wanted, strict=True)
    )


@register_flops("rnn_layer")
def _(input: Tensor, *rest: Any, **result: Any) -> int:
    weights = (rest[2], rest[3], rest[6])  # w_ih, w_hh, w_hr
    return 2 * math.prod(input.shape[:-1]) * sum(w.numel() for w in weights if w is not None)


@register_flops("rnn_layer_backward")
def _(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    input: Tensor,
    *rest: Any,
    **result: Any,
) -> int:
    wanted = rest[-1]
    # Gradients of the states pass by W_hh and W_hr at each step, wanted or not.
    uses = ((rest[2], wanted[0] + wanted[3]), (rest[3], 1 + wanted[4]), (rest[6], 1 + wanted[7]))
    products = sum(w.numel() * times for w, times in uses if w is not None)
    return 2 * math.prod(input.shape[:-1]) * products
