"""What is to be done to modules of PyTorch's that `import pyops` should not have to load."""

import importlib.abc
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[ModuleType], None]

_actions: defaultdict[str, list[Action]] = defaultdict(list)


def after_import(name: str, action: Action) -> None:
    """Call `action` with the module `name` as soon as it is imported; now, if it is."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        _actions[name].append(action)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _actions:
            return None
        actions = _actions.pop(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            for action in actions:
                action(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
