"""Arguments whose class has a say in what torch's functions do."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

REASON = "a subclass with its own __torch_function__"

_NO_OVERRIDE = (
    Tensor.__torch_function__.__func__,  # type: ignore[attr-defined]
    torch._C._disabled_torch_function_impl,
    None,
)


def overridden(*arguments: Any) -> bool:
    """Whether the class of an argument has its own `__torch_function__`.

    It may know torch's functions by their identity and hold nothing without them, as the masks of
    `torch.nn.attention.bias` do: torch's function is then the one to call. That of torch.fx only
    takes notes.
    """
    return has_torch_function(arguments) and any(_overrides(type(a)) for a in arguments)


def _overrides(cls: type) -> bool:
    own = getattr(cls, "__torch_function__", None)
    return getattr(own, "__func__", own) not in _NO_OVERRIDE and not issubclass(cls, torch.fx.Proxy)
