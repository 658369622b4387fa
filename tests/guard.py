"""Tensors with a forbidden page beside them: reading out of bounds faults."""

import ctypes
import mmap

import torch
from torch import Tensor

_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


def _forbid(address: int) -> None:
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded(t: Tensor, before: bool = False) -> Tensor:
    """A contiguous copy that ends (or with `before` begins) where a forbidden page does."""
    if t.device.type != "cpu" or t.numel() == 0:
        return t
    size = t.numel() * t.element_size()
    inside = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    _forbid(address)
    _forbid(address + mmap.PAGESIZE + inside)
    start = mmap.PAGESIZE + (0 if before else inside - size)
    view = torch.frombuffer(pages, dtype=t.dtype, count=t.numel(), offset=start)
    return view.view(t.shape).copy_(t)
