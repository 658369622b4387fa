"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.conv2d import conv2d, conv2d_relu
from pyops.ops.linear_relu import linear, linear_relu

__all__ = ["conv2d", "conv2d_relu", "linear", "linear_relu"]
