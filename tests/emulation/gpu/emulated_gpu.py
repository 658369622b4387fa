"""Tells PyTorch's Python side of the emulated GPU.

The compiled side, which importing pyops loads, answers for what runs there. There is one stream, in
which everything has happened when a call returns; what a graph captures has happened once.
"""

import ctypes
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

PACKAGE = Path(find_spec("pyops").origin).parent
ctypes.CDLL(str(PACKAGE / "libemulated_gpu_accelerator.so"), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402  (what it knows since it was compiled is answered before it is there)


class Stream:
    """The only one."""

    def wait_stream(self, other):
        """Nothing is ever late."""

    def synchronize(self):
        """Nothing is ever late."""


class Graph:
    """Its results are those of the capture."""

    def replay(self):
        """The data are the same."""


class Generator(torch.Generator):
    """Of the CPU's numbers: its kernels draw them."""

    def __new__(cls, device="cpu"):
        """Whatever the device."""
        return super().__new__(cls, "cpu")


def nothing():
    """A function of its own, as the compiler of PyTorch knows each: all has been done."""
    return lambda *_, **__: None


ANSWERS = {
    "_exchange_device": lambda _: 0,
    "_lazy_init": nothing(),
    "_maybe_exchange_device": lambda _: 0,
    "_sleep": nothing(),
    "CUDAGraph": Graph,
    "current_device": lambda: 0,
    "current_stream": lambda *_: Stream(),
    "device_count": lambda: 2,
    "empty_cache": nothing(),
    "get_device_capability": lambda *_: (8, 0),
    "get_device_properties": lambda *_: SimpleNamespace(name="emulated GPU", major=8, minor=0),
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "graph": lambda _: nullcontext(),
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "is_initialized": lambda: True,
    "set_rng_state": nothing(),
    "set_sync_debug_mode": nothing(),
    "stream": lambda _: nullcontext(),
    "Stream": Stream,
    "synchronize": nothing(),
}

for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, answer)
for name in ("getDevice", "exchangeDevice", "maybeExchangeDevice"):
    setattr(torch._C, f"_cuda_{name}", lambda *_: 0)
torch.Generator = Generator
