"""Who serves a call: the operator itself, `torch.ops`, or a function of PyTorch's own."""

from typing import Any

import torch
from torch.overrides import has_torch_function

from pyops import _C
from pyops._overrides import overridden
from pyops.ops import _native as native


def operators(*tensors: Any) -> Any:
    """What has, under their names, the operators for a call with these arguments.

    `pyops._C` calls an operator itself, which saves half of a small layer's time. `torch.ops.pyops`
    is what dynamo knows, and where a mode or a plain subclass sees the call.
    """
    if has_torch_function(tensors):
        return native if overridden(*tensors) else torch.ops.pyops
    return torch.ops.pyops if torch.compiler.is_dynamo_compiling() else _C
