"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.conv2d import conv2d, conv2d_relu, conv2d_relu_max_pool2d
from pyops.ops.linear_relu import linear, linear_relu

__all__ = ["conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "linear", "linear_relu"]
