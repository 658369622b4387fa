"""LSTM sequence classifier."""

from types import ModuleType

from torch import Tensor
from torch.nn import Module


class LSTMClassifier(Module):
    """Linear layer on the last hidden state of a stacked LSTM: (N, T, features) -> (N, classes)."""

    def __init__(
        self,
        nn: ModuleType,
        features: int = 28,
        hidden: int = 128,
        layers: int = 2,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of the sequences `x` (N, T, features)."""
        _, (hidden, _) = self.lstm(x)
        scores: Tensor = self.head(hidden[-1])
        return scores
