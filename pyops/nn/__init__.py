"""The layers, as subclasses of their `torch.nn` namesakes.

Constructor, initialisation, repr, `state_dict`, hooks and forward are torch's own; only the kernels
behind a forward are ours, so either class loads what the other saved. What our kernels do not take
(nested tensors, other devices, rare dtypes) runs natively.
"""

from pyops.nn.attention import MultiheadAttention
from pyops.nn.container import Sequential
from pyops.nn.conv import Conv2d, ConvReLU2d
from pyops.nn.linear import Linear, LinearReLU
from pyops.nn.pooling import MaxPool2d
from pyops.nn.rnn import GRU, LSTM, GRUCell, LSTMCell
from pyops.nn.transformer import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "GRU",
    "LSTM",
    "Conv2d",
    "ConvReLU2d",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LinearReLU",
    "MaxPool2d",
    "MultiheadAttention",
    "Sequential",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
]
