"""Convolutional image classifier, the reference model of the demo."""

from types import ModuleType

from torch.nn import Dropout, Flatten, ReLU, Sequential


def cnn(nn: ModuleType, classes: int = 10, size: int = 48) -> Sequential:
    """Three 3x3 convolutions and two linear layers: (N, 3, size, size) -> (N, classes).

    `size` must be a multiple of 4, for the two 2x2 poolings.
    """
    return Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        ReLU(),
        nn.MaxPool2d(2),
        Flatten(),
        Dropout(0.5),
        nn.Linear(128 * (size // 4) ** 2, 512),
        ReLU(),
        Dropout(0.5),
        nn.Linear(512, classes),
    )
