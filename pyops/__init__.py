"""Faster PyTorch layers: own kernels as drop-in functions, modules and models."""

import sys
from pathlib import Path

try:
    from pyops import _extension as _extension  # first: loads the operators everything else calls
except (ImportError, ValueError, KeyboardInterrupt) as error:
    # The command says it in a line, but its module is part of what could not be imported.
    as_module = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "pyops"
    if Path(*sys.argv[:1]).name != "pyops" and not as_module:
        raise
    interrupted = isinstance(error, KeyboardInterrupt)
    print(f"pyops: {'interrupted' if interrupted else error}", file=sys.stderr)
    raise SystemExit(130 if interrupted else 2) from None
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
