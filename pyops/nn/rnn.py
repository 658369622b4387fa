"""LSTM, GRU and their cells."""

import torch

from pyops import functional
from pyops.nn._dynamo import traceable
from pyops.nn._rebind import rebind


@traceable
class LSTM(torch.nn.LSTM):
    """`torch.nn.LSTM`: packed and unbatched input, projections, dropout, both directions."""

    forward = rebind(torch.nn.LSTM.forward, __name__, _VF=functional)


@traceable
class GRU(torch.nn.GRU):
    """`torch.nn.GRU`: packed and unbatched input, dropout, both directions."""

    forward = rebind(torch.nn.GRU.forward, __name__, _VF=functional)


class LSTMCell(torch.nn.LSTMCell):
    """`torch.nn.LSTMCell`."""

    forward = rebind(torch.nn.LSTMCell.forward, __name__, _VF=functional)


class GRUCell(torch.nn.GRUCell):
    """`torch.nn.GRUCell`."""

    forward = rebind(torch.nn.GRUCell.forward, __name__, _VF=functional)
