"""Whether two runs of one model from one seed agree.

The first step is judged by the error rule, tensor by tensor. From there on rounding makes two
correct runs drift apart, so the rest of the way is judged as two samples are.
"""

import math
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn import Module

from pyops.certificate import float32_precision
from pyops.cli.layers import build
from pyops.cli.tasks import Batch, Task
from pyops.cli.trainer import Trainer
from pyops.numerics import Verdict, compare


def first_step(native: Trainer, ours: Trainer) -> dict[str, Verdict]:
    """The error rule on the loss of the first batch and its gradient by every parameter.

    Both trainers must be fresh. The reference is native's model in float64; dropout is off.
    """
    batch = native.batch(0)
    reference = build(native.task.model, "torch", native.settings.seed).to(native.device).double()
    wide = tuple(part.double() if part.is_floating_point() else part for part in batch)
    ref64 = _loss_and_gradients(reference, native.task, wide)
    with native.autocast():
        by_ours = _loss_and_gradients(ours.model, ours.task, batch)
        by_native = _loss_and_gradients(native.model, native.task, batch)
    return {
        name: compare(
            by_ours[name],
            by_native[name],
            ref64[name],
            direction="forward" if name == "loss" else "backward",
            precision=_precision(native),
            max_zeros=1.0,  # units that no example activates have no gradient
            kinks=name != "loss",
        )
        for name in ref64
    }


def _precision(trainer: Trainer) -> str:
    """Of what is behind the results, which are float32 themselves."""
    by_autocast = {"bfloat16": "medium", "float16": "tf32"}  # as many bits of a number
    on_device = float32_precision(trainer.device.type, cudnn=True)
    return by_autocast.get(trainer.settings.dtype, on_device)


def _loss_and_gradients(model: Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    loss, _ = task.outcome(model.eval(), batch)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return {"loss": loss, **dict(zip(names, gradients, strict=True))}


@dataclass(frozen=True)
class Difference:
    """How far apart two runs are in one quantity, and how far apart chance would put them."""

    name: str
    native: float
    ours: float
    allowed: float

    @property
    def passed(self) -> bool:
        """True when the difference is within what is allowed."""
        return abs(self.ours - self.native) <= self.allowed


def differences(native: Trainer, ours: Trainer) -> list[Difference]:
    """Mean training loss of every epoch and final held-out accuracy of two runs, side by side.

    Two standard errors of the difference of two means are allowed, as if the runs had seen
    different batches; having seen the same ones they should be much closer.
    """
    n = native.steps_per_epoch
    rows = []
    for start in range(0, len(native.history.loss), n):
        losses = [numpy.array(t.history.loss[start : start + n]) for t in (native, ours)]
        error = math.sqrt(sum(values.var() / len(values) for values in losses))
        a, b = (float(values.mean()) for values in losses)
        # The floor serves epochs of so few steps that the losses hardly vary.
        allowed = max(2 * error, 0.01 * a)
        rows.append(Difference(f"training loss, epoch {start // n + 1}", a, b, allowed))
    a, b = (t.history.held_out_accuracy[-1] for t in (native, ours))
    error = math.sqrt((a * (1 - a) + b * (1 - b)) / len(native.task.test[0]))
    return [*rows, Difference("held-out accuracy", a, b, 2 * error)]
