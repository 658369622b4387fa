"""The two sides of a comparison: one model on `torch.nn` or, accelerated, on `pyops.nn`."""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch.nn import Module

SIDES = ("torch", "pyops")


def build(make: Callable[[ModuleType], Module], side: str, seed: int) -> Module:
    """The model `make(nn)` of a side; the initial parameters depend on `seed` alone."""
    torch.manual_seed(seed)
    native = make(torch.nn)
    if side == "torch":
        return native
    model = make(importlib.import_module("pyops.nn"))
    model.load_state_dict(native.state_dict())
    return accelerated(model)


def accelerated(model: Module) -> Module:
    """`pyops.accelerate(model)`."""
    result: Module = importlib.import_module("pyops").accelerate(model)
    return result
