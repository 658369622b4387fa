"""Control and insight: which instruction set kernels may use, and which kernel served a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pyops import _C


def isa() -> str:
    """The instruction set kernels may use now: "scalar", "avx2", "avx512" or "amx"."""
    return _C.isa()


@contextmanager
def isa_cap(name: str) -> Iterator[None]:
    """Kernels use nothing above `name` inside the block; a cap, it cannot add what a machine lacks.

    Names as of `isa` cap the CPU; "sm_80" and "sm_90" cap GPUs. Holds for the whole process.
    ValueError for an unknown name. `PYOPS_ISA` sets the same cap.
    """
    before = _C.isa_cap(), _C.arch_cap()
    _C.set_isa_cap(name)
    try:
        yield
    finally:
        for cap in before:
            _C.set_isa_cap(cap)


@dataclass(frozen=True)
class Call:
    """One call: the operator, its tensors, the kernel that ran, and why better rows did not."""

    op: str
    shapes: list[tuple[int, ...]]
    dtype: str
    kernel: str
    rejected: list[tuple[str, str]]


@dataclass
class CallLog:
    """What `explain` saw, in order; printing it gives a table."""

    calls: list[Call] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("op", "dtype", "shapes", "kernel", "not used")]
        for call in self.calls:
            shapes = " ".join("x".join(map(str, shape)) or "scalar" for shape in call.shapes)
            reasons = "; ".join(f"{kernel}: {reason}" for kernel, reason in call.rejected)
            rows.append((call.op, call.dtype, shapes, call.kernel, reasons))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
            for row in rows
        )


@contextmanager
def explain() -> Iterator[CallLog]:
    """Record every call inside the block: `with pyops.explain() as log: ...; print(log)`.

    The log is filled when the block ends. Calls of all threads are seen, backward included.
    """
    log = CallLog()
    begin = _C.explain_begin()
    try:
        yield log
    finally:
        for call in _C.explain_end(begin):
            call["shapes"] = [tuple(shape) for shape in call["shapes"]]
            log.calls.append(Call(**call))
