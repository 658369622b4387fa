"""Tells PyTorch's Python side of the emulated GPU: `pytest -p emulated_gpu`.

The compiled side, which importing pyops loads, answers for what runs there. Streams are one, and
everything has happened when a call returns.
"""

import ctypes
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(find_spec("pyops").origin).parent
ctypes.CDLL(str(PACKAGE / "libemulated_gpu_accelerator.so"), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402  (what it asks at compile time is answered before it is there)


class Stream:
    """The only one."""

    def wait_stream(self, other):
        """Nothing is ever late."""

    def synchronize(self):
        """Nothing is ever late."""


class Generator(torch.Generator):
    """Of the CPU's numbers: its kernels draw them."""

    def __new__(cls, device="cpu"):
        """Whatever the device."""
        return super().__new__(cls, "cpu")


def nothing(*_, **__):
    """What a GPU would do later has been done."""


ANSWERS = {
    "_lazy_init": nothing,
    "_sleep": nothing,
    "current_device": lambda: 0,
    "current_stream": lambda *_: Stream(),
    "device_count": lambda: 2,
    "empty_cache": nothing,
    "get_device_capability": lambda *_: (8, 0),
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "is_initialized": lambda: True,
    "set_sync_debug_mode": nothing,
    "stream": lambda _: nullcontext(),
    "Stream": Stream,
    "synchronize": nothing,
}

for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, answer)
torch.Generator = Generator
