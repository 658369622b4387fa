"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.linear_relu import linear, linear_relu
from pyops.ops.max_pool2d import max_pool2d

__all__ = ["linear", "linear_relu", "max_pool2d"]
