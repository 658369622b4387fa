"""Registers fake kernels: the shapes an operator of ours answers with when nothing is computed."""

from collections.abc import Callable
from typing import TypeVar

import torch

Kernel = TypeVar("Kernel", bound=Callable[..., object])

_library = torch.library.Library("pyops", "FRAGMENT")  # type: ignore[no-untyped-call]


def register_fake(op: str) -> Callable[[Kernel], Kernel]:
    """Register the decorated function as the fake (and meta) kernel of `pyops::op`."""

    def decorate(kernel: Kernel) -> Kernel:
        torch.library.register_fake(f"pyops::{op}", kernel, lib=_library)
        return kernel

    return decorate
