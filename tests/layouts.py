"""The ways a tensor may lie in memory."""

import ctypes
import mmap
from functools import partial

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


def dense_strides(t):
    """The strides that say something: those of dimensions longer than one."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def strided(t):
    """Every other element of a buffer twice as long, in each row."""
    return t.new_full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan)[..., ::2].copy_(t)


def offset(t):
    """One element into its storage: no vector load of it is aligned."""
    return t.new_full((t.numel() + 1,), torch.nan)[1:].view(t.shape).copy_(t)


LAYOUTS = {
    "strided": strided,
    "offset": offset,
    "permuted": lambda t: (
        t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    ),
    "expanded first": lambda t: t[:1].expand_as(t),
    "expanded last": lambda t: t[..., :1].expand_as(t),
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "guarded after": guarded,
    "guarded before": partial(guarded, before=True),
}
