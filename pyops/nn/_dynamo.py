"""Lets torch.compile trace our recurrent layers without a graph break.

Dynamo breaks the graph at every instance of torch.nn.LSTM and GRU, unless its process-wide
`allow_rnn` is set, because the native operators would be unrolled over time. Ours stay one
operator. So for exactly our classes, and only while such an instance is wrapped, the switch is set:
native layers elsewhere keep their behaviour.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

_BUILDER = "torch._dynamo.variables.builder"
_classes: list[type] = []


def traceable(cls: Class) -> Class:
    """Mark a subclass of torch.nn.LSTM or GRU as one that Dynamo may trace."""
    _classes.append(cls)
    if _BUILDER in sys.modules:
        _register(sys.modules[_BUILDER])
    return cls


def _register(builder: ModuleType) -> None:
    dispatch = builder.VariableBuilder._type_dispatch()
    dispatch.update(dict.fromkeys(_classes, _wrap))


def _wrap(builder: Any, module: Any) -> Any:
    import torch._dynamo.config

    with torch._dynamo.config.patch(allow_rnn=True):
        return builder.wrap_module(module)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers once Dynamo is imported: importing it here would add seconds to `import pyops`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _BUILDER not in sys.modules:
    sys.meta_path.insert(0, _AfterImport())
