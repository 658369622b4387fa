"""Faster PyTorch layers: own kernels as drop-in functions, modules and models."""

from pyops import _extension as _extension  # first: loads the operators everything else calls
from pyops import functional, nn
from pyops._control import CallLog, explain, isa, isa_cap
from pyops.accelerate import accelerate, restore

__version__ = "0.1.0"
__all__ = [
    "CallLog",
    "accelerate",
    "explain",
    "functional",
    "isa",
    "isa_cap",
    "nn",
    "restore",
]
