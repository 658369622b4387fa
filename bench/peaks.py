"""What the machine can do at most, measured in the run that uses it.

Arithmetic: the package's register-resident FMA and tile loops; on a GPU, or a CPU without AVX2, the
fastest matmul, which is a lower bound only. Memory: the fastest of copy, sum and fill over growing
working sets; a kernel whose tensors fit a cache is held against that cache, not against DRAM. A
GPU's cache is too fast for these to show: what fits it is held against no bandwidth.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pyops import _C
from pyops.cli.info import cpu_fact

from .clocks import Clock, clock_of

WORKING_SETS = tuple(2**k for k in (19, 21, 23, 25, 27, 29))
"""Bytes. Below the first one a call is over before a bandwidth can be measured."""


@dataclass
class Peaks:
    """Measured limits in flop/s and byte/s."""

    flops: dict[str, float] = field(default_factory=dict)
    """By dtype name, "float32-high" for that precision; on a GPU "tf32" too."""
    exact: bool = False
    """True where arithmetic was measured by loops that only compute, not by a matmul."""
    bandwidth: dict[int, float] = field(default_factory=dict)
    """By working set in bytes."""

    def seconds(
        self, unit: str, flops: float, moved: float, working_set: float, cold: float = 0
    ) -> dict[str, float]:
        """The least time for `flops` operations and `moved` bytes of a working set, by limit.

        unit: of `flops`. cold: bytes that are in no cache when the call begins.
        """
        least = {}
        if flops:
            least["compute"] = flops / self.flops[unit]
        sizes = sorted(self.bandwidth)
        reached = bisect_right(sizes, working_set)
        if reached:
            # The next smaller set is served by the same cache or a faster one; what a larger set
            # gets, a smaller one gets too.
            rate = max(self.bandwidth[size] for size in sizes[reached - 1 :])
            least["memory"] = moved / rate
        if cold and sizes:
            least["memory"] = max(least.get("memory", 0.0), cold / self.bandwidth[sizes[-1]])
        return least

    def raise_to(self, other: Peaks) -> None:
        """Keep the higher of both measurements: neighbours only ever slow a machine down."""
        self.flops = {name: max(rate, other.flops[name]) for name, rate in self.flops.items()}
        self.bandwidth = {
            size: max(rate, other.bandwidth[size]) for size, rate in self.bandwidth.items()
        }


def measure(device: str, *, seconds: float = 0.05) -> Peaks:
    """Measure the limits of `device` with the current number of threads."""
    clock = clock_of(device)
    with matmul_precision("highest"):
        matmul = {
            name: _matmul(getattr(torch, name), device, clock, seconds)
            for name in ("float64", "float32", "bfloat16", "float16")
        }
    bandwidth = {size: _bandwidth(size, device, clock, seconds) for size in _sets(device)}
    if device.startswith("cuda"):
        with matmul_precision("high"):
            tf32 = _matmul(torch.float32, device, clock, seconds)
        # Three products in TF32 make one of float32.
        both = {"float32": max(matmul["float32"], tf32 / 3), "float32-high": tf32, "tf32": tf32}
        return Peaks(matmul | both, False, bandwidth)
    loops = _loops() if device == "cpu" else {}
    return Peaks(_by_dtype(matmul, loops), bool(loops), bandwidth)


def size_name(size: int) -> str:
    """A working set in MiB or KiB."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _sets(device: str) -> tuple[int, ...]:
    """Working sets to measure with: on a GPU those that twice its cache cannot hold."""
    if not device.startswith("cuda"):
        return WORKING_SETS
    gpu = torch.cuda.get_device_properties(device)
    sizes = [2**k for k in range(21, 32, 2)]
    return tuple(s for s in sizes if 2 * gpu.L2_cache_size <= s <= gpu.total_memory // 4)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set `torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _by_dtype(matmul: Mapping[str, float], loops: Mapping[str, float]) -> dict[str, float]:
    tiles = loops.get("amx_bfloat16", 0.0)
    fma = max((rate for unit, rate in loops.items() if unit.endswith("float32")), default=0.0)
    # float32 splits into three bfloat16 parts: 6 tile products give float32, 3 give "high"; a
    # float16 splits into two, 3 products. AVX-512's own float16 FMAs do twice float32's work.
    flags = cpu_fact("flags").split()
    pairs = loops.get("avx512_bf16_bfloat16", 0.0)
    return {
        "float64": max(matmul["float64"], fma / 2),
        "float32": max(matmul["float32"], fma, tiles / 6),
        "float32-high": max(matmul["float32"], fma, tiles / 3),
        "bfloat16": max(matmul["bfloat16"], fma, pairs, tiles),
        "float16": max(matmul["float16"], fma * (1 + ("avx512_fp16" in flags)), tiles / 3),
    }


def _loops() -> dict[str, float]:
    """flop/s of the package's register-resident loops with the current threads, by unit."""
    rates: dict[str, float] = {}
    for peak in _C.measure_peaks():
        if peak["threads"] <= torch.get_num_threads():
            rates[peak["unit"]] = max(rates.get(peak["unit"], 0.0), 1e9 * peak["gflops"])
    return rates


def _matmul(dtype: torch.dtype, device: str, clock: Clock, seconds: float) -> float:
    n = 1024 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * n**3 / _best(lambda: torch.mm(a, a, out=out), clock, seconds)


def _bandwidth(size: int, device: str, clock: Clock, seconds: float) -> float:
    source = torch.ones(size // 8, device=device)
    target = torch.empty_like(source)
    whole = torch.ones(size // 4, device=device)
    kernels: tuple[Callable[[], object], ...] = (
        lambda: target.copy_(source),
        lambda: whole.sum(),
        lambda: whole.fill_(1.0),
    )
    return size / min(_best(kernel, clock, seconds) for kernel in kernels)


def _best(kernel: Callable[[], object], clock: Clock, seconds: float) -> float:
    """Seconds per call in the best of several batches of calls."""
    best, spent, calls = float("inf"), 0.0, 1
    kernel()
    while spent < seconds:
        elapsed = clock.seconds(kernel, calls)
        best, spent = min(best, elapsed / calls), spent + elapsed
        if elapsed < seconds / 20:
            calls *= 2
    return best
