"""What the tests of modules share: one case per layer and option, and a run by name."""

import copy

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_leaves

import pyops
from judging import assert_accurate, gradients_like


class ConvReLU2d(torch.nn.Conv2d):
    def forward(self, input):
        return super().forward(input).relu()


class LinearReLU(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input).relu()


FUSED = {"ConvReLU2d": ConvReLU2d, "LinearReLU": LinearReLU}


class Layer:
    """A layer's class name, constructor arguments and inputs: shapes, or functions of `random`.

    call: further arguments of the forward.
    """

    def __init__(self, cls, *args, inputs, call=None, **kwargs):
        self.cls, self.args, self.kwargs = cls, args, kwargs
        self.inputs, self.call = inputs, call or {}

    def __str__(self):
        options = [*map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        call = "".join(f" {name}" for name in self.call)
        shapes = "x".join(map(str, self.inputs[0])) if isinstance(self.inputs[0], tuple) else ""
        return f"{self.cls}({','.join(options)}) {shapes}{call}"

    def build(self, namespace, dtype=torch.float32, device="cpu"):
        """The layer, from torch.nn or pyops.nn, with the same weights on both sides."""
        torch.manual_seed(0)
        native = namespace is torch.nn and FUSED.get(self.cls)
        cls = native or getattr(namespace, self.cls)
        return cls(*self.args, **self.kwargs).to(device, dtype)

    def draw(self, dtype=torch.float32, device="cpu"):
        """The same inputs and further arguments for whoever asks, in `dtype`."""
        generator = torch.Generator().manual_seed(1)

        def random(shape):
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(device, dtype).requires_grad_()

        def cast(argument):
            argument = argument.to(device) if isinstance(argument, Tensor) else argument
            return argument.to(dtype) if is_floating(argument) else argument

        inputs = [random(part) if isinstance(part, tuple) else part(random) for part in self.inputs]
        return inputs, {name: cast(argument) for name, argument in self.call.items()}


def is_floating(argument):
    return isinstance(argument, Tensor) and argument.is_floating_point()


def state(*shapes):
    """A tuple of hidden states."""

    return lambda random: tuple(map(random, shapes))


def packed(*lengths, features, sort):
    """A packed batch of sequences; `sort`: in the order they come, which is not by length."""

    def draw(random):
        sequences = [random((length, features)) for length in lengths]
        if not sort:
            return pack_sequence(sequences)
        padded = torch.nn.utils.rnn.pad_sequence(sequences)
        return pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)

    return draw


def causal(n, dtype=torch.float32):
    return torch.nn.Transformer.generate_square_subsequent_mask(n, dtype=dtype)


def run(module, inputs, call):
    """Outputs and gradients of inputs and parameters, by name."""
    outputs = tensors(module(*inputs, **call))
    leaves = {f"input{i}": t for i, t in enumerate(tensors(inputs)) if t.requires_grad}
    leaves |= dict(module.named_parameters())
    ends = [o for o in outputs if o.requires_grad]
    gradients = torch.autograd.grad(ends, list(leaves.values()), gradients_like(ends))
    named = {f"output{i}": o.detach() for i, o in enumerate(outputs)}
    return named | {f"grad_{n}": g for n, g in zip(leaves, gradients, strict=True)}


def tensors(tree):
    """The tensors in a tree of tuples; of a packed sequence, its data."""
    leaves = tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, PackedSequence))
    leaves = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def judge(ours, native, layer, dtype=torch.float32, device="cpu"):
    """Both modules on the layer's inputs by the error rule, beside float64."""
    wide = copy.deepcopy(native).double()
    results = [
        run(module, *layer.draw(kind, device))
        for module, kind in ((ours, dtype), (native, dtype), (wide, torch.float64))
    ]
    # Of a maximum, and of a cell that starts from nothing, many gradients are zero by nature.
    max_zeros = 1.0 if layer.cls in ("MaxPool2d", "LSTMCell", "GRUCell") else 0.7
    assert_accurate(*results, max_zeros=max_zeros, kinks=True)


CONV = [
    Layer("Conv2d", 3, 5, 3, inputs=[(2, 3, 9, 7)]),
    Layer("Conv2d", 3, 5, 3, inputs=[(3, 9, 7)]),
    Layer("Conv2d", 4, 6, (3, 2), stride=2, padding=1, groups=2, inputs=[(2, 4, 9, 7)]),
    Layer("Conv2d", 3, 5, 3, padding="same", dilation=2, bias=False, inputs=[(2, 3, 9, 7)]),
    *(
        Layer("Conv2d", 3, 5, 3, padding=(1, 2), padding_mode=mode, inputs=[(2, 3, 9, 7)])
        for mode in ("zeros", "reflect", "replicate", "circular")
    ),
    Layer("Conv2d", 3, 5, 4, padding="same", padding_mode="circular", inputs=[(2, 3, 9, 7)]),
    Layer("ConvReLU2d", 3, 5, 3, padding=1, inputs=[(2, 3, 9, 7)]),
    Layer("ConvReLU2d", 3, 5, 3, padding=1, padding_mode="reflect", inputs=[(2, 3, 9, 7)]),
]
POOL = [
    Layer("MaxPool2d", 2, inputs=[(2, 3, 9, 7)]),
    Layer("MaxPool2d", 3, 2, 1, inputs=[(3, 9, 7)]),
    Layer("MaxPool2d", (3, 2), (2, 1), ceil_mode=True, inputs=[(2, 3, 9, 8)]),
    Layer("MaxPool2d", 2, dilation=2, return_indices=True, inputs=[(2, 3, 9, 7)]),
]
LINEAR = [
    Layer("Linear", 7, 9, inputs=[(3, 7)]),
    Layer("Linear", 7, 9, bias=False, inputs=[(2, 3, 7)]),
    Layer("Linear", 7, 9, inputs=[(7,)]),
    Layer("LinearReLU", 7, 9, inputs=[(5, 7)]),
]
CELL = [
    Layer("LSTMCell", 4, 6, inputs=[(3, 4)]),
    Layer("LSTMCell", 4, 6, inputs=[(3, 4), state((3, 6), (3, 6))]),
    Layer("LSTMCell", 4, 6, bias=False, inputs=[(4,), state((6,), (6,))]),
    Layer("GRUCell", 4, 6, inputs=[(3, 4)]),
    Layer("GRUCell", 4, 6, inputs=[(3, 4), (3, 6)]),
    Layer("GRUCell", 4, 6, bias=False, inputs=[(4,), (6,)]),
]
RNN = [
    *(
        layer
        for cls in ("LSTM", "GRU")
        for layer in (
            Layer(cls, 4, 6, inputs=[(5, 3, 4)]),
            Layer(cls, 4, 6, num_layers=2, bidirectional=True, inputs=[(5, 3, 4)]),
            Layer(cls, 4, 6, batch_first=True, bias=False, inputs=[(3, 5, 4)]),
            Layer(cls, 4, 6, inputs=[(5, 4)]),
            Layer(cls, 4, 6, inputs=[packed(5, 3, 2, features=4, sort=False)]),
            Layer(cls, 4, 6, bidirectional=True, inputs=[packed(2, 5, 3, features=4, sort=True)]),
        )
    ),
    Layer("LSTM", 4, 6, proj_size=3, num_layers=2, inputs=[(5, 3, 4)]),
    Layer("LSTM", 4, 6, inputs=[(5, 3, 4), state((1, 3, 6), (1, 3, 6))]),
    Layer("LSTM", 4, 6, inputs=[(5, 4), state((1, 6), (1, 6))]),
    Layer(
        "LSTM",
        4,
        6,
        inputs=[packed(2, 5, 3, features=4, sort=True), state((1, 3, 6), (1, 3, 6))],
    ),
    Layer("GRU", 4, 6, inputs=[(5, 3, 4), (1, 3, 6)]),
    Layer("GRU", 4, 6, batch_first=True, inputs=[(5, 4), (1, 6)]),
]
PADDING = torch.tensor([[False, False, False, True], [False, False, False, False]])
QUIET = {"need_weights": False}
ATTENTION = [
    *(
        Layer(
            "MultiheadAttention",
            8,
            2,
            inputs=[(4, 2, 8), (4, 2, 8), (4, 2, 8)],
            call={"need_weights": weights, **call},
        )
        for weights in (True, False)
        for call in (
            {},
            {"key_padding_mask": PADDING},
            {"attn_mask": causal(4), "is_causal": True},
            {"attn_mask": causal(4).isinf()},
            {"attn_mask": causal(4).isinf().expand(4, 4, 4), "key_padding_mask": PADDING},
        )
    ),
    *(
        Layer("MultiheadAttention", 8, 2, **options, inputs=inputs, call=QUIET)
        for options, inputs in (
            ({"batch_first": True}, [(2, 3, 8), (2, 5, 8), (2, 5, 8)]),
            ({"bias": False}, [(3, 2, 8), (5, 2, 8), (5, 2, 8)]),
            ({"kdim": 6, "vdim": 4}, [(3, 2, 8), (5, 2, 6), (5, 2, 4)]),
            ({"kdim": 6, "vdim": 4, "batch_first": True}, [(2, 3, 8), (2, 5, 6), (2, 5, 4)]),
            ({"add_bias_kv": True, "add_zero_attn": True}, [(3, 2, 8), (5, 2, 8), (5, 2, 8)]),
            ({}, [(3, 8), (5, 8), (5, 8)]),
        )
    ),
    Layer(
        "MultiheadAttention",
        8,
        2,
        batch_first=True,
        inputs=[(2, 3, 8), (2, 5, 8), (2, 5, 8)],
        call={"average_attn_weights": False},
    ),
]
TRANSFORMER = [
    Layer("TransformerEncoderLayer", 8, 2, 16, 0.0, **options, inputs=[(4, 2, 8)], call=call)
    for options, call in (
        ({}, {}),
        ({"norm_first": True, "bias": False}, {"src_mask": causal(4), "is_causal": True}),
        ({"activation": "gelu"}, {"src_key_padding_mask": PADDING}),
        ({"activation": torch.nn.ReLU()}, {"src_mask": causal(4).isinf()}),
    )
] + [
    Layer(
        "TransformerDecoderLayer",
        8,
        2,
        16,
        0.0,
        **options,
        inputs=[(4, 2, 8), (3, 2, 8)],
        call=call,
    )
    for options, call in (
        ({}, {}),
        ({"norm_first": True}, {"tgt_mask": causal(4), "tgt_is_causal": True}),
        ({"activation": "gelu"}, {"tgt_key_padding_mask": PADDING}),
    )
]
LAYERS = [*CONV, *POOL, *LINEAR, *CELL, *RNN, *ATTENTION, *TRANSFORMER]
ONE_OF_EACH = list({layer.cls: layer for layer in reversed(LAYERS)}.values())

assert {layer.cls for layer in LAYERS} | {"Sequential"} == set(pyops.nn.__all__)
