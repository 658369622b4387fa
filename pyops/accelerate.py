"""Gives a whole model our kernels, and takes them back."""

from typing import TypeVar

import torch

from pyops import nn

Model = TypeVar("Model", bound=torch.nn.Module)

# One class replaces the other on a living module, so both must describe the same object: the same
# attributes, and a forward with the same meaning.
_OURS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, ours.__name__): ours
    for ours in vars(nn).values()
    if isinstance(ours, type) and hasattr(torch.nn, ours.__name__)
}
_NATIVE = {ours: native for native, ours in _OURS.items()}


def accelerate(model: Model) -> Model:
    """Make every torch.nn layer in `model` that `pyops.nn` also has one of `pyops.nn`; in place.

    Each module stays the object it is and only changes its class: parameters, buffers, optimizers,
    hooks, shared modules, modes and `state_dict` keys are untouched. A `torch.nn.Sequential` fuses
    neighbours from then on (`pyops.nn.Sequential`). Left as they are: classes derived from
    torch.nn's, lazy modules not yet initialised, quantized, scripted and parametrized modules.
    Calling it again changes only what was added. Whatever knows layers by their class
    (torch.jit.script, torch.fx, torch.ao.quantization) comes first, or after `restore`. Returns
    `model`.
    """
    return _switch("accelerate", model, _OURS)


def restore(model: Model) -> Model:
    """Make every layer of `pyops.nn` in `model` its torch.nn namesake; in place.

    Undoes `accelerate`. What stays: ConvReLU2d and LinearReLU, which have no namesake, and a layer
    that is parametrized, until it is so no more. Returns `model`.
    """
    return _switch("restore", model, _NATIVE)


def _switch(
    name: str, model: Model, classes: dict[type[torch.nn.Module], type[torch.nn.Module]]
) -> Model:
    if not isinstance(model, torch.nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{name}: model must be a torch.nn.Module, got {given}")
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return model
