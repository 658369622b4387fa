"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.attention import scaled_dot_product_attention
from pyops.ops.conv2d import conv2d, conv2d_relu, conv2d_relu_max_pool2d
from pyops.ops.linear_relu import linear, linear_relu
from pyops.ops.max_pool2d import max_pool2d
from pyops.ops.rnn import gru, gru_cell, lstm, lstm_cell

__all__ = [
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "gru",
    "gru_cell",
    "linear",
    "linear_relu",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "scaled_dot_product_attention",
]
