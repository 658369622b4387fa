"""Of every CUDA kernel in the tables, a small call that it serves: `python kernel_calls.py`.

Run as a program, for a sanitizer to watch, it makes all of them forward and backward, and fails
where another kernel served. The sizes fill no tile, and small integers keep every sum exact.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import pyops
from pyops.cases import OPS
from pyops.certificate import Inputs, Outputs, Shape, outputs_and_gradients, random_like
from pyops.cli.info import architectures_of

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last


@dataclass(frozen=True)
class Call:
    """An op of `pyops.cases` on a shape, and the kernels that serve its forward and backward."""

    op: str
    shape: Shape
    kernels: tuple[str, ...]
    """On a GPU whose best code for us is that of `arch`."""
    dtype: torch.dtype = torch.bfloat16
    format: torch.memory_format = CONTIGUOUS
    arch: str = "sm_80"
    precision: str = "highest"
    """Of float32 products, as `torch.set_float32_matmul_precision` has it; convolutions alike."""

    def __str__(self) -> str:
        return self.kernels[0]

    @contextmanager
    def setting(self) -> Iterator[None]:
        """The code of `arch`, and `precision`."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        tf32 = self.precision != "highest"
        try:
            with pyops.isa_cap(self.arch), torch.backends.cudnn.flags(True, allow_tf32=tf32):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def inputs(self, device: str = "cuda", draw: int = 0) -> Inputs:
        """The arguments, in small integers times powers of two."""
        drawn = OPS[self.op].inputs(self.shape, self.dtype, device, lattice=True, draw=draw)
        images = self.format == LAST
        return drawn.map(lambda t: t.to(memory_format=LAST) if images and t.dim() == 4 else t)

    def starts(self, inputs: Inputs) -> Outputs:
        """The gradients that the backward begins with, in small integers."""
        with torch.no_grad():
            return tuple(g.round() for g in random_like(self.run(inputs)))

    def run(self, inputs: Inputs) -> Outputs:
        """The outputs."""
        return OPS[self.op].run(OPS[self.op].ours, inputs)

    def results(self, inputs: Inputs, starts: Outputs) -> dict[str, torch.Tensor]:
        """Outputs and gradients by name."""
        return outputs_and_gradients(OPS[self.op], OPS[self.op].ours, inputs, starts)

    def native(self, inputs: Inputs, starts: Outputs) -> dict[str, torch.Tensor]:
        """The same by native's operator in float64."""
        wide = inputs.map(torch.Tensor.double)
        op = OPS[self.op]
        return outputs_and_gradients(op, op.native, wide, tuple(g.double() for g in starts))

    def served(self, inputs: Inputs, starts: Outputs) -> list[str]:
        """The kernels that ran, each once."""
        with pyops.explain() as log:
            self.results(inputs, starts)
        return list(dict.fromkeys(call.kernel for call in log.calls))


HALF, FLOAT = torch.bfloat16, torch.float32
POOL, LINEAR, CONV = "max_pool2d", "linear_relu", "conv2d_relu"
POOLED_CONV, ATTENTION = "conv2d_relu_max_pool2d", "scaled_dot_product_attention"
ROWS = dict(n=37, i=72, o=40)
IMAGES = dict(n=2, c=16, o=24, hw=(13, 15), k=3, padding=1)
WIDE, OVERLAP = IMAGES | dict(c=40), dict(kernel_size=3, pool_stride=2)
DEPTHWISE = dict(n=2, c=16, o=16, hw=(13, 15), k=3, padding=1, groups=16)
POOLED = dict(n=2, c=16, hw=(33, 35))
SQUARE, ODD = (dict(k=3, stride=2, padding=1), dict(k=(5, 3), stride=3, padding=1))
LARGE = dict(k=(9, 8), stride=(8, 9), padding=2)
SEQUENCES = dict(t=5, b=3, i=16, h=24)
PACKED, BOTH_WAYS = SEQUENCES | dict(lengths=(5, 3, 2)), SEQUENCES | dict(bidirectional=True)
STACKED = SEQUENCES | dict(t=130, layers=2)
STACKED_PACKED = STACKED | dict(lengths=(130, 70, 20))
# More than kernels of all steps at once take.
CROWD = SEQUENCES | dict(b=130, lengths=(5, *64 * (3,), *65 * (2,)))
HEADS = dict(b=2, h=4, l=70, s=131)
GROUPED = HEADS | dict(d=40, kv_heads=2, is_causal=True)


def _both(stem: str, *ways: str) -> tuple[str, ...]:
    """`<stem>_forward_<way>` and `<stem>_backward_<way>`; one way for both, or one for each."""
    forward, backward = (*ways, ways[-1])[:2]
    return f"{stem}_forward_{forward}", f"{stem}_backward_{backward}"


def _pooled(way: str) -> tuple[str, ...]:
    return _both("conv2d_pool", way, "channels_cuda")


CALLS = [
    Call(POOL, POOLED | ODD | dict(c=3), _both("max_pool2d", "cuda"), HALF, LAST),
    Call(POOL, POOLED | ODD, _both("max_pool2d", "windows_cuda")),
    Call(POOL, POOLED | LARGE, _both("max_pool2d", "teams_cuda", "windows_cuda")),
    Call(POOL, POOLED | SQUARE, _both("max_pool2d", "strips_cuda")),
    Call(POOL, POOLED | SQUARE, _both("max_pool2d", "channels_cuda"), HALF, LAST),
    Call(LINEAR, dict(n=37, i=65, o=9), _both("linear", "cuda")),
    Call(LINEAR, ROWS, _both("linear", "tensorop_cuda")),
    Call(LINEAR, ROWS, _both("linear", "tf32_cuda"), FLOAT, precision="high"),
    Call(LINEAR, ROWS, _both("linear", "3xtf32_cuda"), FLOAT),
    Call(LINEAR, ROWS, _both("linear", "sm90"), arch="sm_90"),
    Call(CONV, IMAGES | dict(c=3), _both("conv2d", "cuda")),
    Call(CONV, IMAGES, _both("conv2d", "tensorop_cuda")),
    Call(CONV, DEPTHWISE, _both("conv2d", "depthwise_cuda"), HALF, LAST),
    Call(CONV, IMAGES, _both("conv2d", "tensorop_cuda"), HALF, LAST),
    Call(CONV, IMAGES, _both("conv2d", "tf32_cuda"), FLOAT, LAST, precision="high"),
    Call(CONV, IMAGES, _both("conv2d", "3xtf32_cuda"), FLOAT, LAST),
    Call(CONV, WIDE, _both("conv2d", "sm90"), HALF, LAST, arch="sm_90"),
    Call(POOLED_CONV, IMAGES | dict(c=3) | OVERLAP, _both("conv2d_pool", "cuda")),
    Call(POOLED_CONV, IMAGES | dict(c=3), _both("conv2d_pool", "fused_cuda", "cuda")),
    Call(POOLED_CONV, IMAGES, _pooled("tensorop_cuda"), HALF, LAST),
    Call(POOLED_CONV, IMAGES, _pooled("tf32_cuda"), FLOAT, LAST, precision="high"),
    Call(POOLED_CONV, IMAGES, _pooled("3xtf32_cuda"), FLOAT, LAST),
    Call(POOLED_CONV, WIDE, _pooled("fused_sm90"), HALF, LAST, arch="sm_90"),
    Call(POOLED_CONV, WIDE | OVERLAP, _pooled("sm90"), HALF, LAST, arch="sm_90"),
    Call(ATTENTION, HEADS | dict(d=24, mask=True), _both("attention", "cuda")),
    Call(ATTENTION, GROUPED, _both("attention", "tensorop_cuda")),
    Call(ATTENTION, HEADS | dict(d=72, mask=True), _both("attention", "tensorop_cuda")),
    Call(ATTENTION, GROUPED, _both("attention", "tf32_cuda"), FLOAT, precision="high"),
    Call(ATTENTION, GROUPED, _both("attention", "3xtf32_cuda"), FLOAT),
    Call(ATTENTION, GROUPED, _both("attention", "sm90"), arch="sm_90"),
    Call(ATTENTION, HEADS | dict(d=40, mask=True), ("attention_forward_sm90",), arch="sm_90"),
    Call(ATTENTION, HEADS | dict(d=72, padding=True), _both("attention", "sm90"), arch="sm_90"),
    Call("lstm", SEQUENCES, _both("rnn", "resident_tensorop_cuda")),
    Call("gru", PACKED, _both("rnn", "resident_tensorop_cuda", "resident_sm90"), arch="sm_90"),
    Call("gru", PACKED, _both("rnn", "resident_cuda"), FLOAT),
    Call("lstm", STACKED_PACKED, _both("rnn", "wavefront_cuda"), FLOAT),
    Call("lstm", BOTH_WAYS, _both("rnn", "wavefront_tensorop_cuda")),
    Call("gru", STACKED, _both("rnn", "wavefront_tensorop_cuda", "wavefront_sm90"), arch="sm_90"),
    Call("gru", CROWD, _both("rnn", "tensorop_cuda")),
    Call("lstm", CROWD | dict(i=15), _both("rnn", "cuda")),
]


def runs() -> Sequence[str]:
    """The architectures whose code the GPU that is here runs."""
    here = torch.cuda.is_available()
    return architectures_of(torch.cuda.get_device_capability()) if here else ()


def reachable() -> list[Call]:
    """The calls for the GPU that is here."""
    return [call for call in CALLS if call.arch in runs()]


def main() -> int:
    """Make the calls whose kernels begin with one of `--only`, and say in JSON what served."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", metavar="PREFIX", nargs="+", default=[""])
    only = tuple(parser.parse_args().only)
    wrong, count = {}, 0
    for call in reachable():
        if str(call).startswith(only):
            count += 1
            inputs = call.inputs()
            with call.setting():
                served = call.served(inputs, call.starts(inputs))
            if missing := set(call.kernels) - set(served):
                wrong[", ".join(sorted(missing))] = served
    torch.cuda.synchronize()
    print(json.dumps({"calls": count, "not served": wrong}))
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
