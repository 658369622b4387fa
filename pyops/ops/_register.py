"""Registers what PyTorch asks of an operator besides its kernels: shapes and operation counts."""

from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch

from pyops._after_import import after_import

Kernel = TypeVar("Kernel", bound=Callable[..., object])
Formula = TypeVar("Formula", bound=Callable[..., int])

_library = torch.library.Library("pyops", "FRAGMENT")  # type: ignore[no-untyped-call]


def register_fake(op: str) -> Callable[[Kernel], Kernel]:
    """Register the decorated function as the fake (and meta) kernel of `pyops::op`."""

    def decorate(kernel: Kernel) -> Kernel:
        torch.library.register_fake(f"pyops::{op}", kernel, lib=_library)
        return kernel

    return decorate


def register_flops(*ops: str) -> Callable[[Formula], Formula]:
    """Register the decorated function of an operator's arguments as what its products count for.

    `torch.utils.flop_counter` asks: two operations for each product of a sum, none for the rest.
    """

    def decorate(formula: Formula) -> Formula:
        def register(counter: ModuleType) -> None:
            targets = [getattr(torch.ops.pyops, op) for op in ops]
            counter.register_flop_formula(targets, get_raw=True)(formula)

        after_import("torch.utils.flop_counter", register)
        return formula

    return decorate
