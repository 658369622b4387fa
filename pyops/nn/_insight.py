"""What `pyops.explain` hears from layers."""

import torch
from torch import Tensor

from pyops import _C


def note_native(layer: torch.nn.Module, input: Tensor, reason: str) -> None:
    """Let `explain` know of a call that torch's own layer takes as a whole."""
    if not torch.compiler.is_dynamo_compiling():
        dtype = str(input.dtype).removeprefix("torch.")
        _C.explain_native(type(layer).__name__, dtype, reason)
