"""Memory that a call frees stays with the process, so that the next call finds it touched.

A page touched for the first time costs as much as reading it several times, and by default it is
chance which call of those that take turns gets such pages: freed memory goes back to the system
where it is the last of the heap. So one and the same convolution took 4.3 or 8.5 ms, as its 26 MB
of results had just been given back or not.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of malloc.h: what to give back from the end of the heap, how many blocks may live beside it."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed; False where the allocator is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0)
    )
