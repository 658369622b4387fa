"""Lets torch.compile trace our recurrent layers without a graph break.

Dynamo breaks the graph at every instance of torch.nn.LSTM and GRU, unless its process-wide
`allow_rnn` is set, because the native operators would be unrolled over time. Ours stay one
operator. So for exactly our classes, and only while such an instance is wrapped, the switch is set:
native layers elsewhere keep their behaviour.
"""

from types import ModuleType
from typing import Any, TypeVar

from pyops._after_import import after_import

Class = TypeVar("Class", bound=type)


def traceable(cls: Class) -> Class:
    """Mark a subclass of torch.nn.LSTM or GRU as one that Dynamo may trace."""

    def register(builder: ModuleType) -> None:
        builder.VariableBuilder._type_dispatch()[cls] = _wrap

    after_import("torch._dynamo.variables.builder", register)  # importing it here takes seconds
    return cls


def _wrap(builder: Any, module: Any) -> Any:
    import torch._dynamo.config

    with torch._dynamo.config.patch(allow_rnn=True):
        return builder.wrap_module(module)
