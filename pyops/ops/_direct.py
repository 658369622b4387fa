"""When a call may take the quick way into the dispatcher."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function


def direct(*tensors: Tensor | None) -> bool:
    """Whether `pyops._C` may call the operator itself, which saves half of a small layer's time.

    Not while dynamo traces, which knows `torch.ops` alone, nor where a subclass or a mode wants to
    see the call.
    """
    return not torch.compiler.is_dynamo_compiling() and not has_torch_function(tensors)
