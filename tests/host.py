"""Compiles what CPU and CUDA code share, so that tests can call it without a GPU."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AVX2 = "-mavx2", "-mfma", "-mf16c"
# GCC 12 takes the undefined registers inside its own intrinsics for mistakes of ours.
OWN_WARNINGS = "-Wno-uninitialized", "-Wno-maybe-uninitialized"
AVX512 = *AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "cd")), *OWN_WARNINGS


def emulating(isa):
    """Compiles code of that instruction set, beyond AVX2, as a program of AVX2."""
    header = ROOT / "tests" / "emulation" / f"{isa}.h"
    return *AVX2, "-Wno-psabi", "-include", str(header)


def processor_has(*features):
    """By what Linux calls them, whatever the module says."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(features) <= set(cpuinfo.read_text().split())


def cuda_flags():
    """What code with headers of CUDA and CUTLASS is compiled with; skips where they are not."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    cutlass = importlib.util.find_spec("cutlass_library")
    places = [*([Path(cutlass.origin).parent] if cutlass and cutlass.origin else [])]
    places += ROOT.glob(".venv_cuda/lib/python3*/site-packages/cutlass_library")
    if not (toolkit / "cuda.h").exists() or not places:
        pytest.skip("no CUDA toolkit or no nvidia-cutlass")
    folders = toolkit, toolkit / "cccl", places[0] / "source" / "include"
    return "-DPYOPS_CUDA", *(f"-isystem{folder}" for folder in folders)


@functools.cache
def library(source, *more_flags):
    """A file of this folder as a C library, rebuilt when it or a header of csrc has changed."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = Path(__file__).parent / source
    texts = [path, *sorted(path.parent.glob("*.h")), *sorted((ROOT / "csrc").rglob("*.h"))]
    texts += (Path(f) for f in more_flags if f.endswith((".h", ".cpp")))
    digest = hashlib.sha256(repr(more_flags).encode())
    for text in texts:
        digest.update(text.read_bytes())
    built = ROOT / "build" / "host" / f"{path.stem}-{digest.hexdigest()[:16]}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        fresh = built.with_suffix(f".{os.getpid()}")  # moved in one step: tests run side by side
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        flags += [f"-I{ROOT / 'csrc'}", *more_flags]
        command = [compiler, *flags, str(path), "-o", str(fresh)]
        subprocess.run(command, check=True)
        fresh.replace(built)
    return ctypes.CDLL(str(built))


def int64s(*values):
    """Values as a C array."""
    return (ctypes.c_int64 * len(values))(*values)
