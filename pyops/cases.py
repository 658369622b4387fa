"""Every op with its native composite, its inputs, and small odd shapes to try it on.

`pyops check`, the benchmarks and the tests share this list, so that what is timed is what is
certified. Inputs are drawn so that outputs are of order one and, where a ReLU follows, mostly
positive: a result that is half zeros would prove little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import functional
from .certificate import Function, Inputs, Op, Shape


def _conv2d_relu(*args: Any, **options: Any) -> Tensor:
    return F.relu(F.conv2d(*args, **options))


def _conv2d_relu_max_pool2d(
    *args: Any,
    kernel_size: int = 2,
    pool_stride: int | None = None,
    pool_padding: int = 0,
    pool_dilation: int = 1,
    ceil_mode: bool = False,
    **options: Any,
) -> Tensor:
    pool = (kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    return F.max_pool2d(_conv2d_relu(*args, **options), *pool)


def _linear_relu(*args: Any) -> Tensor:
    return F.relu(F.linear(*args))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _scale(fan_in: int) -> float:
    """About `1 / sqrt(fan_in)`, a power of two: sums of order one, lattices stay lattices."""
    return 2.0 ** -round(math.log2(fan_in) / 2)


def _draw_conv2d(
    random: Function,
    *,
    n: int,
    c: int,
    o: int,
    hw: int | tuple[int, int],
    k: int | tuple[int, int],
    groups: int = 1,
    bias: bool = True,
    shift: float = 0.0,
    **options: Any,
) -> Inputs:
    kernel = _pair(k)
    fan_in = c // groups * math.prod(kernel)
    tensors = {
        "input": random(n, c, *_pair(hw)),
        "weight": random(o, c // groups, *kernel) * _scale(fan_in),
    }
    if bias:
        tensors["bias"] = shift + random(o) / 8
    return Inputs(tensors, {"groups": groups, **options})


def _draw_max_pool2d(
    random: Function, *, n: int, c: int, hw: int | tuple[int, int], k: int, **options: Any
) -> Inputs:
    return Inputs({"input": random(n, c, *_pair(hw))}, {"kernel_size": k, **options})


def _draw_linear(
    random: Function,
    *,
    n: int | tuple[int, ...],
    i: int,
    o: int,
    bias: bool = True,
    shift: float = 0.0,
) -> Inputs:
    lead = (n,) if isinstance(n, int) else n
    tensors = {"input": random(*lead, i), "weight": random(o, i) * _scale(i)}
    if bias:
        tensors["bias"] = shift + random(o) / 8
    return Inputs(tensors)


def _shifted(draw: Callable[..., Inputs]) -> Callable[..., Inputs]:
    """Biases around one and a half standard deviations: a ReLU passes most elements of any draw."""
    return lambda random, **shape: draw(random, shift=1.5, **shape)


def _draw_attention(
    random: Function,
    *,
    b: int,
    h: int,
    l: int,  # noqa: E741 -- PyTorch's own name for the query length
    s: int,
    d: int,
    kv_heads: int | None = None,
    mask: bool = False,
    padding: bool = False,
    **options: Any,
) -> Inputs:
    kv = (b, kv_heads or h, s, d)
    tensors = {"query": random(b, h, l, d), "key": random(*kv), "value": random(*kv)}
    if mask:
        tensors["attn_mask"] = random(l, s)
    if padding:
        options["attn_mask"] = random(b, 1, 1, s) > -1  # keys that every query of a batch sees
    if kv_heads:
        options["enable_gqa"] = True
    return Inputs(tensors, options)


def _weights(random: Function, gates: int, i: int, h: int, suffix: str = "") -> dict[str, Tensor]:
    rows, scale = gates * h, _scale(h)
    return {
        f"w_ih{suffix}": random(rows, i) * scale,
        f"w_hh{suffix}": random(rows, h) * scale,
        f"b_ih{suffix}": random(rows) * scale,
        f"b_hh{suffix}": random(rows) * scale,
    }


def _draw_cell(gates: int) -> Callable[..., Inputs]:
    def draw(random: Function, *, b: int, i: int, h: int) -> Inputs:
        states = {"h": random(b, h)} | ({"c": random(b, h)} if gates == 4 else {})
        return Inputs({"input": random(b, i), **states, **_weights(random, gates, i, h)})

    return draw


def _draw_rnn(gates: int) -> Callable[..., Inputs]:
    def draw(
        random: Function,
        *,
        t: int,
        b: int,
        i: int,
        h: int,
        layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        lengths: tuple[int, ...] = (),
    ) -> Inputs:
        directions = 2 if bidirectional else 1
        options: dict[str, Any] = {"layers": layers, "bidirectional": bidirectional}
        if lengths:
            sizes = [sum(length > step for length in lengths) for step in range(max(lengths))]
            options["batch_sizes"] = torch.tensor(sizes)
            x = random(sum(lengths), i)
        else:
            options["batch_first"] = batch_first
            x = random(b, t, i) if batch_first else random(t, b, i)
        tensors = {"input": x}
        for state in "hc" if gates == 4 else "h":
            tensors[f"{state}0"] = random(layers * directions, b, h)
        for layer in range(layers):
            for reverse in ("", "_reverse")[:directions]:
                width = directions * h if layer else i
                tensors |= _weights(random, gates, width, h, f"_l{layer}{reverse}")
        return Inputs(tensors, options)

    return draw


def _call_lstm_cell(function: Function, tensors: dict[str, Tensor], options: Any) -> Any:
    x, h, c, *weights = tensors.values()
    return function(x, (h, c), *weights)


def _call_rnn(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
    rest = list(tensors.values())
    x, states = rest.pop(0), [rest.pop(0)]
    if "c0" in tensors:
        states.append(rest.pop(0))
    hx = tuple(states) if len(states) > 1 else states[0]
    # has_biases, num_layers, dropout, train, bidirectional: native keeps what its backward needs
    # only when told to train.
    tail = (True, options["layers"], 0.0, torch.is_grad_enabled(), options["bidirectional"])
    if "batch_sizes" in options:
        return function(x, options["batch_sizes"], hx, rest, *tail)
    return function(x, hx, rest, *tail, options["batch_first"])


_CONV_SHAPES: dict[str, Shape] = {
    "tiny": dict(n=1, c=2, o=3, hw=(5, 6), k=3, padding=1),
    "odd": dict(n=2, c=19, o=35, hw=(13, 17), k=3, padding=1),
    "strided": dict(n=3, c=3, o=17, hw=(23, 19), k=7, stride=2, padding=3),
    "pointwise": dict(n=2, c=33, o=65, hw=(9, 11), k=1, bias=False),
    "dilated": dict(n=1, c=16, o=16, hw=(15, 14), k=3, dilation=2, padding=2),
    "grouped": dict(n=2, c=12, o=18, hw=(11, 9), k=(3, 5), groups=3),
    "depthwise": dict(n=2, c=21, o=21, hw=(12, 13), k=3, padding=1, groups=21),
}
_BIASED = {name: {**s, "bias": True} for name, s in _CONV_SHAPES.items()}
_LINEAR_SHAPES: dict[str, Shape] = {
    "tiny": dict(n=3, i=5, o=4),
    "odd": dict(n=37, i=67, o=35),
    "long": dict(n=5, i=1031, o=19),
    "batched": dict(n=(2, 3, 7), i=33, o=17),
    "one row": dict(n=1, i=129, o=65),
}
_CELL_SHAPES: dict[str, Shape] = {
    "tiny": dict(b=2, i=3, h=4),
    "odd": dict(b=7, i=19, h=37),
    "one": dict(b=1, i=65, h=130),
}
_RNN_SHAPES: dict[str, Shape] = {
    "tiny": dict(t=3, b=2, i=3, h=2),
    "odd": dict(t=11, b=5, i=13, h=35),
    "one": dict(t=17, b=1, i=33, h=67),
    "stacked": dict(t=7, b=3, i=9, h=17, layers=2, bidirectional=True, batch_first=True),
    "packed": dict(t=6, b=4, i=11, h=19, lengths=(6, 5, 5, 2)),
}


def _op(
    name: str, native: Function, draw: Function, shapes: Mapping[str, Shape], **rest: Any
) -> Op:
    def ours(*args: Any, **options: Any) -> Any:
        # Looked up at the call, so that a test can put a wrong op in its place.
        return getattr(functional, name)(*args, **options)

    return Op(name, ours, native, draw, shapes, **rest)


def _rnn(name: str, native: Function, gates: int) -> Op:
    return _op(
        name,
        native,
        _draw_rnn(gates),
        _RNN_SHAPES,
        call=_call_rnn,
        cudnn=True,
        terms=lambda shape: (shape["i"] + shape["h"]) * shape["t"] * shape.get("layers", 1),
    )


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _op("conv2d", F.conv2d, _draw_conv2d, _CONV_SHAPES, cudnn=True),
        _op("conv2d_relu", _conv2d_relu, _shifted(_draw_conv2d), _BIASED, kinked=True, cudnn=True),
        _op(
            "conv2d_relu_max_pool2d",
            _conv2d_relu_max_pool2d,
            _shifted(_draw_conv2d),
            _BIASED | {"overlapping": {**_BIASED["odd"], "kernel_size": 3, "pool_stride": 2}},
            kinked=True,
            cudnn=True,
        ),
        _op(
            "max_pool2d",
            F.max_pool2d,
            _draw_max_pool2d,
            {
                "tiny": dict(n=1, c=2, hw=(5, 6), k=2),
                "odd": dict(n=3, c=19, hw=(15, 17), k=2),
                "overlapping": dict(n=2, c=33, hw=(14, 13), k=3, stride=2, padding=1),
                "dilated": dict(n=2, c=5, hw=(16, 15), k=2, dilation=3, ceil_mode=True),
            },
            selects=True,
        ),
        _op("linear", F.linear, _draw_linear, _LINEAR_SHAPES),
        _op("linear_relu", _linear_relu, _shifted(_draw_linear), _LINEAR_SHAPES, kinked=True),
        _op(
            "scaled_dot_product_attention",
            F.scaled_dot_product_attention,
            _draw_attention,
            {
                "tiny": dict(b=1, h=2, l=3, s=4, d=5),
                "odd": dict(b=2, h=3, l=65, s=127, d=40),
                "causal": dict(b=1, h=2, l=129, s=129, d=64, is_causal=True),
                "masked": dict(b=2, h=2, l=33, s=63, d=33, mask=True),
                "grouped": dict(b=1, h=6, l=31, s=31, d=16, kv_heads=2),
            },
        ),
        _op("lstm_cell", torch.lstm_cell, _draw_cell(4), _CELL_SHAPES, call=_call_lstm_cell),
        _rnn("lstm", torch.lstm, 4),
        _op("gru_cell", torch.gru_cell, _draw_cell(3), _CELL_SHAPES),
        _rnn("gru", torch.gru, 3),
    )
}
