"""Tells PyTorch's Python side of the emulated GPU: `pytest -p emulated_gpu`.

The compiled side, which importing pyops loads, answers for what runs there. There is one stream, in
which everything has happened when a call returns; what a graph captures has happened once.
"""

import ctypes
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(find_spec("pyops").origin).parent
ctypes.CDLL(str(PACKAGE / "libemulated_gpu_accelerator.so"), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402  (what it knows since it was compiled is answered before it is there)

MANY = 100  # tests of a file
# Parts of tests' names, and why these do not run here.
ROUNDED = "native has no kernel here that takes row sums from the rounded output, as ours do"
LEFT_OUT = {
    "scaled_dot_product_attention-bfloat16": ROUNDED,
    "scaled_dot_product_attention-float16": ROUNDED,
    "scaled_dot_product_attention-float32": ROUNDED,
    "inductor": "it writes kernels in Triton",
    "gives_the_same_bits_again": "1000 calls: test_emulated_gpu.py makes three",
    "long_sequences": "a GPU of 132 processors takes them at once",
}


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
    "_lazy_init": nothing(),
    "_sleep": nothing(),
    "CUDAGraph": Graph,
    "current_device": lambda: 0,
    "current_stream": lambda *_: Stream(),
    "device_count": lambda: 2,
    "empty_cache": nothing(),
    "get_device_capability": lambda *_: (8, 0),
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


def pytest_addoption(parser):
    """`--thin N`: of a file with many tests every Nth, N best a prime."""
    parser.addoption("--thin", type=int, default=1, help="every Nth test of long files")


def pytest_collection_modifyitems(config, items):
    """Without the tests of LEFT_OUT, and thinned."""
    thin, files = config.getoption("--thin"), {}
    for item in items:
        if item.get_closest_marker("cuda") and not any(part in item.name for part in LEFT_OUT):
            files.setdefault(item.path, []).append(item)
    kept = [t for tests in files.values() for t in tests[:: thin if len(tests) > MANY else 1]]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept
