"""Caps on PyTorch's own instruction sets like that on ours, so that equals are compared.

PyTorch and its libraries read these variables once and early: to set them is to start again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import torch

from pyops import _C
from pyops.cli.info import ISAS

# MKL multiplies PyTorch's float32 matrices. float16 has no instructions of ours below AMX.
NATIVE = {
    "scalar": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE_VNNI", "AVX512"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def missing(isa: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that cap native like `isa` and are not set; none where that is no cap here."""
    if isa not in NATIVE or ISAS.index(isa) >= ISAS.index(_C.isa_detected()):
        return {}
    wanted = dict(zip(VARIABLES, NATIVE[isa], strict=True))
    return {name: value for name, value in wanted.items() if name not in environment}


def cap_native(isa: str | None) -> None:
    """Start this process again with the missing variables, if any."""
    # A GPU's architecture as the cap is none of native's on the CPU.
    variables = missing(isa or os.environ.get("PYOPS_ISA"), os.environ)
    if variables:
        sys.stdout.flush()
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **variables})


def native_capability() -> str:
    """What native uses, for the report."""
    caps = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *caps])
