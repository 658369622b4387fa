"""What training each example model takes: its data, its loss and its measure."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from pyops import data, models
from pyops.cli import UserError

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Task:
    """One example. The parts `train` and `test` hold examples along dimension 0.

    `train_input` and `test_input` turn the first tensor of a part's slice into the model's input,
    the former at random, by the generator. `outcome` gives the loss of a batch and its accuracy in
    0…1, NaN where the task knows none.
    """

    model: Callable[[ModuleType], Module]
    train: Batch
    test: Batch
    train_input: Callable[[Tensor, Generator], Tensor]
    test_input: Callable[[Tensor], Tensor]
    outcome: Callable[[Module, Batch], tuple[Tensor, Tensor]]
    epochs: int


def make_task(name: str, directory: str | None, seed: int, limit: int | None) -> Task:
    """The task `name` of TASKS on at most `limit` examples a part; UserError on bad data."""
    try:
        return TASKS[name](directory, seed, limit)
    except OSError as error:
        raise UserError(f"cannot read the data: {error}") from error


def _classification(module: Module, batch: Batch) -> tuple[Tensor, Tensor]:
    x, labels = batch
    return _scored(module(x), labels)


def _continuation(module: Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Continue the first half of each window by its second, character by character."""
    (text,) = batch
    half = text.size(1) // 2
    scores = module(text[:, :half], text[:, half - 1 : -1])
    return _scored(scores.flatten(0, 1), text[:, half:].flatten())


def _scored(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return cross_entropy(scores, labels), (scores.argmax(1) == labels).float().mean()


def _denoising(module: Module, batch: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(module, models.DDPM)
    loss = module.loss(*batch)
    return loss, torch.full_like(loss, torch.nan)


def _plain(x: Tensor, generator: Generator | None = None) -> Tensor:
    return x


def _mlp(directory: str | None, seed: int, limit: int | None) -> Task:
    digits = data.load_digits(directory, seed).limited(limit)
    return Task(models.mlp, digits[:2], digits[2:], _plain, _plain, _classification, epochs=10)


def _cnn(directory: str | None, seed: int, limit: int | None) -> Task:
    digits = data.load_digits(directory, seed).limited(limit)
    return Task(
        models.cnn, digits[:2], digits[2:], data.augment, data.to_rgb, _classification, epochs=2
    )


def _lstm(directory: str | None, seed: int, limit: int | None) -> Task:
    """Digits read row by row."""

    def rows(images: Tensor, generator: Generator | None = None) -> Tensor:
        return images.squeeze(1)

    digits = data.load_digits(directory, seed).limited(limit)
    return Task(
        models.LSTMClassifier, digits[:2], digits[2:], rows, rows, _classification, epochs=10
    )


def _transformer(directory: str | None, seed: int, limit: int | None) -> Task:
    """The last tenth of the text is held out."""
    if directory is not None:
        raise UserError("train transformer: --data is for digits, this model reads Python's help")
    pieces = data.windows(data.load_text(), 64)
    train, test = pieces.tensor_split([len(pieces) * 9 // 10])
    return Task(
        lambda nn: models.Seq2SeqTransformer(nn, vocabulary=len(data.VOCABULARY)),
        (train[:limit],),
        (test[:limit],),
        _plain,
        _plain,
        _continuation,
        epochs=5,
    )


def _diffusion(directory: str | None, seed: int, limit: int | None) -> Task:
    def centred(images: Tensor, generator: Generator | None = None) -> Tensor:
        return images * 2 - 1

    digits = data.load_digits(directory, seed).limited(limit)
    return Task(models.DDPM, digits[:1], digits[2:3], centred, centred, _denoising, epochs=10)


TASKS: dict[str, Callable[[str | None, int, int | None], Task]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "lstm": _lstm,
    "transformer": _transformer,
    "diffusion": _diffusion,
}
