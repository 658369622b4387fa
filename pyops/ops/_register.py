"""Registers what PyTorch asks of an operator besides its kernels: shapes and operation counts."""

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyops._after_import import after_import

Kernel = TypeVar("Kernel", bound=Callable[..., object])
Formula = TypeVar("Formula", bound=Callable[..., int])

_library = torch.library.Library("pyops", "FRAGMENT")  # type: ignore[no-untyped-call]


def register_fake(op: str) -> Callable[[Kernel], Kernel]:
    """Register the decorated function as the fake (and meta) kernel of `pyops::op`."""

    def decorate(kernel: Kernel) -> Kernel:
        @wraps(kernel)
        def on_one_device(*args: Any, **options: Any) -> object:
            # One meta tensor brings a call here, and what others hold would be passed over.
            devices = [t.device for t in args if isinstance(t, Tensor) and t.dtype != torch.int64]
            if len(set(devices)) > 1:
                raise RuntimeError(f"{op}: tensors must be on one device, got {devices}")
            return kernel(*args, **options)

        torch.library.register_fake(f"pyops::{op}", on_one_device, lib=_library)
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
