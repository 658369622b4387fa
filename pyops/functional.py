"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.linear_relu import linear, linear_relu
from pyops.ops.rnn import gru, gru_cell, lstm, lstm_cell

__all__ = ["gru", "gru_cell", "linear", "linear_relu", "lstm", "lstm_cell"]
