"""How fast the layers and the training step of a model are on pyops, beside native.

A speed is a ratio measured in one process, both sides in turn: the pair in the middle.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import Conv2d, Linear, MaxPool2d, Module, ReLU, Sequential

from pyops.cli.layers import accelerated
from pyops.cli.trainer import Trainer

MIN_PAIRS, MAX_PAIRS, SECONDS = 7, 200, 0.5


@dataclass(frozen=True)
class Speed:
    """Milliseconds per call of both sides, and how many times as fast pyops is."""

    name: str
    direction: str
    native_ms: float
    ours_ms: float
    ratio: float


def layer_speeds(native: Trainer) -> list[Speed]:
    """Every layer of native's Sequential, with the ReLU and pooling that follow, on real inputs.

    "forward" is without autograd; "forward+backward" takes the gradients that training takes: by
    the parameters and, except in the first layer, by the input.
    """
    assert isinstance(native.model, Sequential)
    speeds: list[Speed] = []
    x, *_ = native.batch(0)
    for block in _blocks(native.model.eval()):
        if isinstance(block[0], (Conv2d, Linear)):
            models = (block, accelerated(deepcopy(block)))
            wanted = x.clone().requires_grad_(bool(speeds))
            for direction, make in (("forward", _forward), ("forward+backward", _both)):
                calls = [make(model, wanted, native) for model in models]
                speeds.append(_compare(_label(block), direction, calls, native.device))
        with torch.no_grad(), native.autocast():
            x = block(x)
    return speeds


def step_speed(native: Trainer, ours: Trainer) -> Speed:
    """A whole training step: forward, loss, backward, optimizer. It trains both models further."""
    batch = native.batch(0)
    calls = [partial(trainer.step, batch, 0) for trainer in (native, ours)]
    return _compare("training step", "", calls, native.device)


def _blocks(model: Sequential) -> list[Sequential]:
    groups: list[list[Module]] = []
    for layer in model:
        if isinstance(layer, (ReLU, MaxPool2d)) and groups:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return [Sequential(*group) for group in groups]


def _label(block: Sequential) -> str:
    rows, columns = block[0].get_parameter("weight").shape[:2]
    return f"{columns}→{rows} " + " + ".join(type(layer).__name__ for layer in block)


def _forward(model: Module, x: Tensor, trainer: Trainer) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad(), trainer.autocast():
            return model(x)

    return call


def _both(model: Module, x: Tensor, trainer: Trainer) -> Callable[[], object]:
    wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
    with trainer.autocast():
        grad_output = torch.randn_like(model(x))

    def call() -> object:
        with trainer.autocast():
            y = model(x)
        return torch.autograd.grad(y, wanted, grad_output)

    return call


def _compare(
    name: str,
    direction: str,
    calls: Sequence[Callable[[], object]],
    device: torch.device,
) -> Speed:
    """`calls`: native's and ours."""

    def milliseconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    native, ours = calls
    milliseconds(native), milliseconds(ours)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + SECONDS
    while len(pairs) < MIN_PAIRS or (time.perf_counter() < end and len(pairs) < MAX_PAIRS):
        pairs.append((milliseconds(native), milliseconds(ours)))
    # Its times too: medians of each side would now and then contradict that of the ratios.
    a, b = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    return Speed(name, direction, a, b, a / b)
