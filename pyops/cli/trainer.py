"""The training loop of all example models, and its checkpoints.

Whatever is random in a step depends on the seed and the step's number alone. Two sides so see the
same batches and dropout masks, and a resumed run continues as if it had never stopped.
"""

import io
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from pyops.cli import UserError
from pyops.cli.files import replace_file
from pyops.cli.layers import build
from pyops.cli.tasks import Batch, Task

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Independent streams of random numbers under one seed.
_ORDER, _AUGMENTATION, _MODEL, _EVALUATION = range(4)


@dataclass(frozen=True)
class Settings:
    """What decides the course of a run, and so must be the same when it resumes."""

    model: str
    side: str
    batch_size: int
    dtype: str
    seed: int
    limit: int | None
    data: str | None


@dataclass
class History:
    """Loss and accuracy of each training step; the same and the seconds taken for each epoch."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    held_out_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Trainer:
    """One model, its optimizer and its history so far."""

    def __init__(self, task: Task, settings: Settings, device: torch.device) -> None:
        self.task, self.settings, self.device = task, settings, device
        self.model = build(task.model, settings.side, settings.seed).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.dtype == "float16")
        self.history = History()
        self.steps_per_epoch = max(1, len(task.train[0]) // settings.batch_size)

    def fit(self, epochs: int, checkpoint: Path) -> None:
        """Train up to `epochs` in all, saving after each and when interrupted between steps."""
        try:
            for epoch in range(len(self.history.held_out_loss), epochs):
                start = time.perf_counter()
                first, last = len(self.history.loss), (epoch + 1) * self.steps_per_epoch
                label = f"{self.settings.side} epoch {epoch + 1}/{epochs}"
                for step in tqdm(range(first, last), label, leave=False, disable=None):
                    with _uninterrupted():
                        loss, accuracy = self.step(self.batch(step), step)
                        self.history.loss.append(loss)
                        self.history.accuracy.append(accuracy)
                seconds = time.perf_counter() - start
                loss, accuracy = self.evaluate()
                with _uninterrupted():
                    self.history.held_out_loss.append(loss)
                    self.history.held_out_accuracy.append(accuracy)
                    self.history.seconds.append(seconds)
                    self.save(checkpoint)
                print(f"{label}  {self._summary(epoch)}", flush=True)
        except KeyboardInterrupt:
            self.save(checkpoint)
            raise

    def batch(self, step: int) -> Batch:
        """The training batch of a step; an epoch's last, incomplete batch is left out."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.task.train[0]), generator=self._generator(_ORDER, epoch))
        size = self.settings.batch_size
        x, *rest = (part[order[position * size :][:size]] for part in self.task.train)
        x = self.task.train_input(x.to(self.device), self._generator(_AUGMENTATION, step))
        return (x, *(part.to(self.device) for part in rest))

    def step(self, batch: Batch, step: int) -> tuple[float, float]:
        """One optimizer step; the loss and the accuracy before it."""
        self.model.train()
        torch.manual_seed(self._seed(_MODEL, step))
        self.optimizer.zero_grad()
        with self.autocast():
            loss, accuracy = self.task.outcome(self.model, batch)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), accuracy.item()

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the held-out part."""
        self.model.eval()
        torch.manual_seed(self._seed(_EVALUATION))
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        with torch.no_grad(), self.autocast():
            for batch in self.held_out():
                outcome = torch.stack(self.task.outcome(self.model, batch))
                sums += outcome.to(sums) * len(batch[0])
                count += len(batch[0])
        loss, accuracy = (sums / count).tolist()
        return loss, accuracy

    def predict(self) -> Tensor:
        """The model's output for the held-out part, float32 on the CPU."""
        self.model.eval()
        with torch.no_grad(), self.autocast():
            return torch.cat([self.model(x).float().cpu() for x, *_ in self.held_out()])

    def held_out(self) -> Iterator[Batch]:
        """The held-out part in batches."""
        for x, *rest in zip(*(torch.split(part, 256) for part in self.task.test), strict=True):
            yield (
                self.task.test_input(x.to(self.device)),
                *(part.to(self.device) for part in rest),
            )

    def autocast(self) -> torch.autocast:
        """The precision of the settings; float32 leaves the model as it is."""
        dtype = DTYPES[self.settings.dtype]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def save(self, path: Path) -> None:
        """Write a checkpoint, in one piece even if the process dies meanwhile."""
        state = {
            "settings": asdict(self.settings),
            "history": asdict(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        content = io.BytesIO()  # a full disk is an OSError to Python's files, not to torch's
        torch.save(state, content)
        replace_file(path, lambda temporary: temporary.write_bytes(content.getbuffer()))

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings; UserError when it cannot be."""
        try:
            # From there each state goes where its owner keeps it: Adam's counts nowhere else.
            state = torch.load(path, map_location="cpu", weights_only=True)
            stored = Settings(**state["settings"])
            if stored == self.settings:
                self._restore(state)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"cannot read the checkpoint {path}: it is damaged or of another version of pyops"
            ) from error
        except Exception as error:  # torch.load lets through whatever its parsers stumble over
            reason = str(error).strip().partition(". ")[0].partition("\n")[0]
            raise UserError(
                f"cannot read the checkpoint {path}: {reason or 'it is no checkpoint'}"
            ) from error
        if stored != self.settings:
            ours = asdict(self.settings)
            differing = [
                f"{k} {v}, not {ours[k]}" for k, v in asdict(stored).items() if v != ours[k]
            ]
            raise UserError(f"the checkpoint {path} has {'; '.join(differing)}")

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])

    def _seed(self, *stream: int) -> int:
        words = numpy.random.SeedSequence([self.settings.seed, *stream]).generate_state(1)
        return int(words[0])

    def _generator(self, *stream: int) -> Generator:
        return Generator().manual_seed(self._seed(*stream))

    def _summary(self, epoch: int) -> str:
        history, n = self.history, self.steps_per_epoch
        steps = slice(epoch * n, (epoch + 1) * n)
        loss = numpy.mean(history.loss[steps])
        text = f"loss {loss:.4f}, held out {history.held_out_loss[epoch]:.4f}"
        if numpy.isfinite(history.held_out_accuracy[epoch]):
            accuracy = numpy.mean(history.accuracy[steps])
            text += f"; accuracy {accuracy:.1%}, held out {history.held_out_accuracy[epoch]:.1%}"
        return f"{text}; {history.seconds[epoch]:.1f} s"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done: no half-updated parameters, no half-kept books."""
    pending: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt
