"""Linear and LinearReLU."""

import torch
from torch import Tensor

from pyops import functional


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias`: (*, in_features) -> (*, out_features)."""
        return functional.linear(input, self.weight, self.bias)


class LinearReLU(Linear):
    """`relu(Linear(input))` in one pass; arguments and `state_dict` of `Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """`relu(input @ weight.T + bias)`: (*, in_features) -> (*, out_features)."""
        return functional.linear_relu(input, self.weight, self.bias)
