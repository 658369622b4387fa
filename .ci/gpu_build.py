"""The stage `build` of `.ci/gpu.py`: installs what is missing, beside the build, and compiles."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import programs
from programs import Outcome, last_lines, result_of, run, search_path

# What is built and tested with, by the module that shows it is there.
NEEDED = {
    "setuptools": "setuptools", "wheel": "wheel", "cmake": "cmake", "ninja": "ninja",
    "pybind11": "pybind11", "cutlass_library": "nvidia-cutlass", "numpy": "numpy",
    "pytest": "pytest", "xdist": "pytest-xdist", "pytest_timeout": "pytest-timeout",
    "expecttest": "expecttest", "rich": "rich", "tqdm": "tqdm", "pandas": "pandas",
    "matplotlib": "matplotlib", "sklearn": "scikit-learn", "mlxtend": "mlxtend",
}  # fmt: skip
HEADERS = "nvidia-cutlass"  # of which the Python part, with all that it needs, stays away


def build(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Install what is missing and compile, in place, with the CUDA kernels.

    It compiles whatever could not be installed, which may be a tool of a few tests alone; and where
    not all compiles, all but Hopper's kernels, so that later stages prove the others.
    """
    end = time.monotonic() + seconds
    problems = []
    for command in installation(args.wheels):
        if run(command, "install.log", end - time.monotonic()) != 0:
            problems += last_lines("install.log")
    remarks = ["not all was installed"] if problems else []
    code = compile_for(gpu, "build.log", end)
    without_hopper = os.environ.get("PYOPS_CUDA_HOPPER") == "0"
    if code != 0:
        problems += last_lines("build.log")
    if code and not without_hopper:
        leave_out = {"PYOPS_CUDA_HOPPER": "0"}
        without_hopper = compile_for(gpu, "build-without-hopper.log", end, **leave_out) == 0
    remarks += ["without Hopper's kernels"] if without_hopper else []
    result = "failed" if problems and code == 0 else result_of(code)
    return [Outcome("build", result, ", ".join(remarks), 0, problems)]


def compile_for(gpu: dict[str, Any], log: str, end: float, **variables: str) -> int | None:
    """The build's exit code."""
    setup = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    wanted = {"PYOPS_CUDA": "1", "PYOPS_CUDA_ARCHS": own_code(gpu), **variables}
    return run(setup, log, end - time.monotonic(), **wanted)


def own_code(gpu: dict[str, Any]) -> str:
    """For which GPU to compile besides sm_80: the one that is here, or what was asked for.

    Its driver would otherwise translate all the PTX of a file when a process first needs it.
    """
    here = gpu.get("capability", "8.0").replace(".", "")
    return os.environ.get("PYOPS_CUDA_ARCHS", "" if here == "80" else f"{here}-real")


def installation(wheels: Path | None) -> list[list[str]]:
    """The commands that install what is missing, beside the build; none if nothing is."""
    to = str(programs.SITE)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", to]
    if wheels is not None:
        # What is there stays: all that includes its headers would be compiled again.
        files = [str(w) for w in sorted(wheels.resolve().glob("*.whl")) if not _is_unpacked(w)]
        return [[*pip, "--no-index", "--no-deps", *files]] if files else []
    if to not in sys.path:
        sys.path.append(to)
    missing = [name for module, name in NEEDED.items() if not _is_there(module)]
    pinned = [*pip, "-c", str(programs.ROOT / "constraints.txt")]
    whole = [name for name in missing if name != HEADERS]
    commands = [[*pinned, *whole]] if whole else []
    return [*commands, [*pinned, "--no-deps", HEADERS]] if HEADERS in missing else commands


def _is_unpacked(wheel: Path) -> bool:
    name, version = wheel.name.split("-")[:2]
    return (programs.SITE / f"{name}-{version}.dist-info").is_dir()


def _is_there(module: str) -> bool:
    is_program = module in ("cmake", "ninja") and shutil.which(module, path=search_path())
    return bool(is_program) or importlib.util.find_spec(module) is not None
