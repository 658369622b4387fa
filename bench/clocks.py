"""How long calls take: by the host's clock on a CPU, by events in the stream on a GPU.

On a GPU an event before and one after the calls see all that a caller waits for, the host's part
included where the GPU has to wait for it. Repeated calls find in the caches what they left there;
`cold` empties a GPU's before each call, and then only what runs on the GPU counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

Call = Callable[[], object]


class Clock(Protocol):
    """Something that times."""

    cold: bool
    """True where every call starts with an empty cache."""

    def seconds(self, call: Call, calls: int) -> float:
        """What `calls` calls take, up to the last result."""


class HostClock:
    """For a device whose work is done when the call returns."""

    cold = False

    def seconds(self, call: Call, calls: int) -> float:
        """As `Clock`."""
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start


class GpuClock:
    """`event` makes timing events; `flush` empties the cache, None leaves it warm."""

    def __init__(self, event: Callable[[], Any], flush: Call | None = None) -> None:
        self.event, self.flush, self.cold = event, flush, flush is not None

    def seconds(self, call: Call, calls: int) -> float:
        """As `Clock`."""
        size = calls if self.flush is None else 1
        spans = []
        for _ in range(calls // size):
            if self.flush is not None:
                self.flush()
            begin, end = self.event(), self.event()
            begin.record()
            for _ in range(size):
                call()
            end.record()
            spans.append((begin, end))
        spans[-1][1].synchronize()
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in spans)
        return milliseconds / 1e3


def clock_of(device: str, *, cold: bool = False) -> Clock:
    """The clock for a device. ValueError for `cold` on a CPU, whose caches cannot be emptied."""
    if torch.device(device).type != "cuda":
        if cold:
            raise ValueError("cold: only a GPU's cache can be emptied before each call")
        return HostClock()
    flush = None
    if cold:
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        flush = torch.empty(size, dtype=torch.int8, device=device).zero_
    return GpuClock(partial(torch.cuda.Event, enable_timing=True), flush)
