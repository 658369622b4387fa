"""`pyops info`: what this machine offers, and which kernel serves which op and dtype on it."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyops
from pyops import _C
from pyops.cli import UserError, first_line

from .table import show

ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
ARCHITECTURES = ("sm_80", "sm_90")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops info`: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the machine and the kernel table."""
    facts = machine()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:{width}}  {fact}")
    print()
    isa = pyops.isa()
    columns = ("op", "dtype", "kernels, best first")
    rows = serving(_C.tables(), "cpu", ISAS[: ISAS.index(isa) + 1])
    show(f"Kernels on {isa} (none of ours: native)", columns, rows)
    for gpu, architectures in gpu_kinds().items():
        rows = serving(_C.tables(), "cuda", architectures)
        show(f"Kernels on {gpu} (none of ours: native)", columns, rows)
    print("Which kernel served a given call, and why not a better one: pyops.explain().")
    return 0


def machine() -> dict[str, str]:
    """Versions, processor and GPU, by name."""
    build = _C.build_info()
    return {
        "pyops": f"{pyops.__version__}, {'with' if build['cuda'] else 'without'} CUDA kernels",
        "built with": f"torch {build['torch']}, {build['compiler']}",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "processor": processor(),
        "ISA": f"{pyops.isa()} in use, {_C.isa_detected()} detected",
        "threads": str(torch.get_num_threads()),
        "caches": ", ".join(f"{name} {size}" for name, size in caches().items()) or "unknown",
        "GPU": ", ".join(gpus()) or "none",
    }


def processor() -> str:
    """The processor's name as far as it is known."""
    return cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_fact(name: str) -> str:
    """What Linux says under `name`, as in "flags", of the first core; empty if nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def caches() -> dict[str, str]:
    """Size of each data cache that the first core sees, as in `{"L1": "48K"}`."""
    sizes = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / f).read_text().strip() for f in ("level", "type", "size"))
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes


def gpus() -> list[str]:
    """Name and compute capability of every CUDA device."""
    if not torch.cuda.is_available():
        return []
    every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{gpu.name} (sm_{gpu.major}{gpu.minor})" for gpu in every]


def usable_device(name: str) -> torch.device:
    """The CPU, or a GPU that is here; UserError for any other."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"cannot use the device {name}: it must be cpu, or a GPU as in cuda")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use the device {name}: {first_line(error)}") from error
    return device


def gpu_kinds() -> dict[str, Sequence[str]]:
    """Kinds of GPUs by name, and what they run of ours: those here, or all when there is none."""
    if not _C.build_info()["cuda"]:
        return {}
    kinds = {}
    for gpu in map(torch.cuda.get_device_capability, range(torch.cuda.device_count())):
        kinds["sm_{}{}".format(*gpu)] = architectures_of(gpu)
    return kinds or {"GPUs, of which none is here": ARCHITECTURES}


def architectures_of(capability: tuple[int, int]) -> Sequence[str]:
    """What a GPU runs of ours: code for sm_80 on every later one, Hopper's on Hopper alone."""
    if capability < (8, 0):
        return ()
    return ARCHITECTURES if capability == (9, 0) and _C.build_info()["hopper"] else ("sm_80",)


def serving(
    tables: Sequence[dict[str, Any]], device: str, reachable: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Rows (op, dtypes, kernels best first) of a device that is all of `reachable`.

    Dtypes served alike share a row. A kernel is named by where it runs, with its condition; the
    first unconditional one ends a list.
    """
    tables = [row for row in tables if row["device"] == device]
    rows = []
    for op in dict.fromkeys(row["op"] for row in tables):
        by_kernels: dict[str, list[str]] = {}
        for dtype in DTYPES:
            kernels = []
            for row in tables:
                if row["op"] != op or row["needs"] not in reachable:
                    continue
                if dtype not in row["dtypes"]:
                    continue
                where = row["kernel"].removeprefix(f"{op}_")
                kernels.append(f"{where} ({row['condition']})" if row["condition"] else where)
                if not row["condition"]:
                    break
            by_kernels.setdefault(", ".join(kernels) or "native", []).append(dtype)
        rows += [(op, ", ".join(dtypes), kernels) for kernels, dtypes in by_kernels.items()]
    return rows
