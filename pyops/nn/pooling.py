"""MaxPool2d."""

from typing import Any

import torch
from torch import Tensor

from pyops import functional


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d`."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) or (C, H, W), pooled; with the indices when `return_indices`."""
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )
