"""Control and insight: which instruction set kernels may use, and which kernel served a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from pyops import _C


def isa() -> str:
    """The instruction set kernels may use now: "scalar", "avx2", "avx512",
    "avx512_bf16" or "amx".
    """
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
            rows.append((call.op, call.dtype, shapes, call.kernel, _reasons(call)))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
            for row in rows
        )


def _reasons(call: Call) -> str:
    """Why rows were rejected, each reason once, less the words that all names begin with."""
    names = [name.split("_") for name in (call.kernel, *(name for name, _ in call.rejected))]
    heads = zip(*(words[:-1] for words in names), strict=False)
    shared = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, heads))
    rows: dict[str, list[str]] = {}
    for (_, reason), words in zip(call.rejected, names[1:], strict=True):
        rows.setdefault(reason, []).append("_".join(words[shared:]))
    return "; ".join(f"{', '.join(row)}: {reason}" for reason, row in rows.items())


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
