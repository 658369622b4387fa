"""What `pyops.explain` hears of calls that no operator of ours sees."""

import torch
from torch import Tensor

from pyops import _C


def note_native(op: str, input: Tensor, reason: str) -> None:
    """Let `explain` know of an operator, or a whole layer, that torch's own code computes."""
    if not torch.compiler.is_dynamo_compiling():
        with torch._C.DisableTorchFunctionSubclass():  # a subclass need not see that we looked
            dtype = str(input.dtype).removeprefix("torch.")
        _C.explain_native(op, dtype, reason)
