"""Multilayer perceptron."""

from types import ModuleType

from torch.nn import Flatten, ReLU, Sequential


def mlp(nn: ModuleType, features: int = 784, hidden: int = 512, classes: int = 10) -> Sequential:
    """Classifier with two hidden ReLU layers: (N, …) of `features` values each -> (N, classes)."""
    return Sequential(
        Flatten(),
        nn.Linear(features, hidden),
        ReLU(),
        nn.Linear(hidden, hidden),
        ReLU(),
        nn.Linear(hidden, classes),
    )
