"""Our kernels inside torch's own layer code."""

import types
from typing import Any


def rebind(function: Any, module: str, **names: Any) -> Any:
    """`function` as one of `module`, with these global names of its body bound to other objects.

    torch's layers reach their kernels through a name of their module. Binding just that name keeps
    the code around it torch's own: every check, default and message of the torch installed.
    """
    if unknown := names.keys() - set(function.__code__.co_names):
        raise ImportError(f"{function.__qualname__} of this torch does not use {sorted(unknown)}")
    # Without `__name__` torch.compile looks globals up here, not in the module of that name.
    scope = {**function.__globals__, **names}
    del scope["__name__"]
    bound = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    bound.__module__ = module
    bound.__doc__ = function.__doc__
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__annotations__ = function.__annotations__
    return bound
