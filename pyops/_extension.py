"""Loads the compiled operators, or says in one sentence why that cannot work."""

import os
import sys

_REBUILD = "`pip install --no-build-isolation --force-reinstall --no-deps .` in the pyops sources"

try:
    from pyops._build_info import TORCH_VERSION
except ImportError as error:
    # Sources stand before what is installed where Python starts in their folder.
    sources = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    raise ImportError(
        f"pyops is not built in {sources}: start Python in another folder to use an installed "
        "pyops, or run `pip install --no-build-isolation --no-deps -e .` in this one"
    ) from error

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # torch is there, and what it says of itself is worth more
    raise ImportError(
        f"pyops was built for torch {TORCH_VERSION} and none is installed: "
        f"`pip install torch=={TORCH_VERSION.partition('+')[0]}`"
    ) from error

if torch.__version__ != TORCH_VERSION:
    raise ImportError(
        f"pyops was built for torch {TORCH_VERSION} but torch {torch.__version__} is installed: "
        f"rebuild it with {_REBUILD}"
    )

try:
    import pyops._C as _C
except ModuleNotFoundError as error:
    python = f"Python 3.{sys.version_info.minor}"
    raise ImportError(f"pyops is not built for {python}: run {_REBUILD}") from error

if os.environ.get("PYOPS_ISA"):
    try:
        _C.set_isa_cap(os.environ["PYOPS_ISA"])
    except ValueError as error:
        raise ValueError(f"PYOPS_ISA: {str(error).removeprefix('isa: ')}") from None
