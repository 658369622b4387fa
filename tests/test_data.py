"""The digits and the text: what they are, and what happens when their files are not."""

import gzip
import math

import pytest
import torch

from pyops import data

SIZES = {"train": 30, "t10k": 10}


@pytest.fixture
def mnist(tmp_path):
    """MNIST's four files with random content, two of them gzipped, as torchvision leaves them."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    contents = {}
    for part, size in SIZES.items():
        images = torch.randint(256, (size, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (size,), dtype=torch.uint8, generator=generator)
        contents[part] = images, labels
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.dim()])
            header += b"".join(length.to_bytes(4, "big") for length in values.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(header + values.numpy().tobytes())
    for plain in (raw / "t10k-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"):
        plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return tmp_path, contents


@pytest.fixture(scope="module")
def digits():
    return data.load_digits(seed=3)


def test_digits_are_split_by_class(digits):
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_labels.bincount().tolist() == [100] * 10
    assert digits.train_labels.bincount().tolist() == [400] * 10
    assert digits.train_images.dtype == torch.float32
    assert digits.train_images.amin() == 0 and digits.train_images.amax() == 1


def test_no_digit_is_in_both_parts(digits):
    train = {image.numpy().tobytes() for image in digits.train_images}
    test = {image.numpy().tobytes() for image in digits.test_images}
    assert not train & test


def test_digits_depend_on_the_seed_alone(digits):
    again, other = data.load_digits(seed=3), data.load_digits(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(digits, again, strict=True))
    assert not torch.equal(digits.test_images, other.test_images)


def test_any_first_digits_are_mixed(digits):
    assert len(digits.limited(64).train_labels.unique()) == 10
    assert len(digits.limited(64).test_labels.unique()) == 10
    assert all(len(part) == 64 for part in digits.limited(64))
    assert all(torch.equal(a, b) for a, b in zip(digits.limited(None), digits, strict=True))


def test_mnist_files(mnist):
    directory, contents = mnist
    digits = data.load_digits(directory)
    for part, images, labels in (("train", *digits[:2]), ("t10k", *digits[2:])):
        bytes_again = (images * 255).round().to(torch.uint8)
        assert _pairs(bytes_again, labels) == _pairs(*contents[part])


def _pairs(images, labels):
    return sorted(
        (image.numpy().tobytes(), int(n)) for image, n in zip(images, labels, strict=True)
    )


def test_missing_mnist_file(mnist):
    directory, _ = mnist
    (directory / "MNIST/raw/train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no MNIST file train-images-idx3-ubyte in"):
        data.load_digits(directory)


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b"text" + b[4:]])
def test_damaged_mnist_file(mnist, name, damage):
    directory, _ = mnist
    path = directory / "MNIST/raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=r"ubyte.* is (truncated|not an IDX file)|[Nn]ot a gzip"):
        data.load_digits(directory)


def test_counts_that_do_not_match(mnist):
    directory, _ = mnist
    raw = directory / "MNIST/raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(OSError, match="must be N images of 28x28 and N labels"):
        data.load_digits(directory)


def test_augmentation_is_seeded(digits):
    def batch(seed):
        return data.augment(digits.train_images[:8], torch.Generator().manual_seed(seed))

    assert batch(0).shape == (8, 3, 48, 48)
    assert torch.equal(batch(0), batch(0))
    assert not torch.equal(batch(0), batch(1))
    assert batch(0).amin() >= -1 and batch(0).amax() <= 1


def test_augmentation_stays_within_its_bounds():
    """A bright bar through the centre shows angle, brightness and contrast of each image."""
    bar = torch.zeros(200, 1, 28, 28)
    bar[:, :, 4:24, 13:15] = 0.7
    batch = data.augment(bar, torch.Generator().manual_seed(0))[:, 0] / 2 + 0.5
    row, column = torch.meshgrid(*[torch.arange(48) - 23.5] * 2, indexing="ij")
    weight = (batch - batch.amin((1, 2), keepdim=True)).double()
    moment = (weight * row * column).sum((1, 2)), (weight * (row**2 - column**2)).sum((1, 2))
    degrees = torch.atan2(2 * moment[0], moment[1]).rad2deg() / 2
    assert degrees.abs().max() < 11 and degrees.amin() < -8 and degrees.amax() > 8
    peak = batch.amax((1, 2))
    assert peak.amin() < 0.6 and peak.amax() > 0.8
    assert peak.amin() > 0.7 * 0.8 * 0.8 * 0.95 and peak.amax() <= 1


def test_without_randomness_only_scaled(digits):
    rgb = data.to_rgb(digits.test_images[:4])
    assert rgb.shape == (4, 3, 48, 48)
    assert torch.equal(rgb[:, 0], rgb[:, 1]) and torch.equal(rgb[:, 0], rgb[:, 2])
    mean = digits.test_images[:4].mean() * 2 - 1
    assert math.isclose(rgb.mean(), mean, abs_tol=0.01)


def test_text_is_english():
    text = data.load_text()
    assert len(text) > 100_000 and text.dtype == torch.int64
    characters = "".join(data.VOCABULARY[i] for i in text.tolist())
    assert characters.count(" the ") > 1000


def test_windows_are_consecutive():
    pieces = data.windows(torch.arange(10), 4)
    assert pieces.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
