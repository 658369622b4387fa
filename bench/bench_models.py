"""The example models, inference and training step: `pyops.accelerate(model)` against the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import pyops
from pyops.certificate import Function, Inputs, Op, Shape
from pyops.models import DDPM, LSTMClassifier, Seq2SeqTransformer, cnn, mlp

from .command import main
from .harness import Bench


def images(random: Function, n: int, c: int, size: int) -> Inputs:
    """Pictures."""
    return Inputs({"input": random(n, c, size, size)})


def noisy_images(random: Function, n: int, c: int, size: int) -> Inputs:
    """Pictures, and the diffusion step that each is at."""
    pictures = random(n, c, size, size)
    return Inputs({"input": pictures}, {"ids": (torch.arange(n, device=pictures.device),)})


def rows(random: Function, n: int, features: int) -> Inputs:
    """Feature vectors."""
    return Inputs({"input": random(n, features)})


def sequences(random: Function, n: int, t: int, features: int) -> Inputs:
    """Sequences of feature vectors."""
    return Inputs({"input": random(n, t, features)})


def token_pairs(random: Function, n: int, t: int, vocabulary: int) -> Inputs:
    """Source and target texts."""
    source, target = (random(2, n, t).abs() * vocabulary).long() % vocabulary
    return Inputs({}, {"ids": (source, target)})


def model_op(name: str, model: nn.Module, arguments: Callable[..., Inputs]) -> Op:
    """The model as an op on `arguments(random, **shape)` and its parameters and buffers."""
    for module in model.modules():
        # Both sides would draw other random numbers.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    accelerated = pyops.accelerate(copy.deepcopy(model))

    def draw(random: Function, **shape: int) -> Inputs:
        inputs = arguments(random, **shape)
        state = (*model.named_parameters(), *model.named_buffers())
        inputs.tensors |= {key: t.detach().double() for key, t in state}
        return inputs

    def call(function: Function, tensors: dict[str, Tensor], options: dict[str, object]) -> object:
        return function(tensors, options.get("ids", ()))

    functions = _function(accelerated), _function(model)
    return Op(name, *functions, draw, {}, call=call, cudnn=True)


def _function(model: nn.Module) -> Function:
    by_mode = {True: model.train(), False: copy.deepcopy(model).eval()}

    def function(tensors: dict[str, Tensor], ids: tuple[Tensor, ...]) -> object:
        state = dict(tensors)
        arguments = (state.pop("input"), *ids) if "input" in state else ids
        return functional_call(by_mode[torch.is_grad_enabled()], state, arguments)

    return function


def flops(op: Op, shape: Shape) -> float:
    """As PyTorch's own counter sees the native model, with RNNs taken apart into products."""
    inputs = op.inputs(shape, torch.float32)
    inputs.tensors = {name: t.detach() for name, t in inputs.tensors.items()}
    with (
        torch.no_grad(),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as counter,
    ):
        op.run(op.native, inputs)
    return float(counter.get_total_flops())


def bench(op: Op, **shapes: Shape) -> Bench:
    """Time `op` on `shapes`."""
    return Bench(op, shapes, partial(flops, op), kinks=True)


with torch.random.fork_rng(devices=()):  # an import leaves random numbers as they are
    torch.default_generator.manual_seed(0)
    BENCHES = [
        bench(
            model_op("cnn", cnn(nn), images),
            train=dict(n=64, c=3, size=48),
            single=dict(n=1, c=3, size=48),
        ),
        bench(model_op("mlp", mlp(nn), rows), mnist=dict(n=128, features=784)),
        bench(
            model_op("lstm_classifier", LSTMClassifier(nn), sequences),
            mnist=dict(n=64, t=28, features=28),
        ),
        bench(
            model_op("transformer", Seq2SeqTransformer(nn, vocabulary=96), token_pairs),
            text=dict(n=32, t=64, vocabulary=96),
        ),
        bench(
            model_op("diffusion", DDPM(nn).predictor, noisy_images), mnist=dict(n=32, c=1, size=28)
        ),
    ]

if __name__ == "__main__":
    main(BENCHES)
