"""`pyops check`: a certificate that every op is as accurate as native on this machine.

Each op runs in each dtype, forward and backward, on each instruction set the machine has and each
architecture whose code its GPU runs. Errors against float64 stand beside native's own and must
satisfy the rule of `pyops.numerics`; float64 gradients, first and second, must match finite
differences; repeats must be bit-equal.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import pyops
from pyops import _C
from pyops.cases import OPS
from pyops.certificate import (
    Inputs,
    Op,
    Shape,
    kernels,
    outputs_and_gradients,
    random_like,
    verify,
)
from pyops.cli import UserError, first_line
from pyops.cli.files import output_file, write_json
from pyops.numerics import UNJUDGED, Verdict, settle

from .info import ARCHITECTURES, DTYPES, ISAS, architectures_of, gpus, processor
from .table import show


@dataclass(frozen=True)
class Finding:
    """One line of the certificate: the worst result of an op over its shapes."""

    place: str
    """The instruction set, or the architecture of the GPU's code."""
    op: str
    dtype: str
    direction: str
    kernels: list[str]
    shape: str
    tensor: str
    err_l2: float
    native_l2: float
    ratio_l2: float
    err_max: float
    native_max: float
    ratio_max: float
    used: float
    """The share of the allowed error that was used up."""
    repeats: bool
    """True when repeated calls gave the same bits."""
    gradcheck: bool | None
    """First and second derivatives against finite differences; None where not run."""
    reason: str

    @property
    def passed(self) -> bool:
        """True when nothing is wrong."""
        return not self.reason

    @property
    def reproduction(self) -> str:
        """The command that shows this finding alone."""
        return f"pyops check {self.op} --dtype {self.dtype} --isa {self.place}"


def available_isas() -> tuple[str, ...]:
    """The instruction sets from scalar up to the effective one."""
    return ISAS[: ISAS.index(pyops.isa()) + 1]


def places() -> dict[str, str]:
    """The device of every instruction set and architecture here: the CPU's, then the GPU's."""
    found = dict.fromkeys(available_isas(), "cpu")
    if torch.cuda.is_available() and _C.build_info()["cuda"]:
        runs = architectures_of(torch.cuda.get_device_capability())
        found |= {arch: "cuda" for arch in runs if arch <= _C.arch_cap()}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops check`."""
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=DTYPES, metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: all)",
    )  # fmt: skip
    isas = (*ISAS, *ARCHITECTURES)
    parser.add_argument(
        "--isa", nargs="+", choices=isas, metavar="ISA",
        help=f"of {', '.join(isas)} (default: all this machine has)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: both, if there is a GPU"
    )
    parser.add_argument("--quick", action="store_true", help="two shapes per op, under a minute")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the findings too")


def run(args: argparse.Namespace) -> int:
    """Print the certificate; 1 when any finding fails."""
    for name in args.ops:
        if name not in OPS:
            raise UserError(f"check: op must be one of {', '.join(OPS)}, got {name!r}")
    start = time.perf_counter()
    findings: list[Finding] = []
    for place, device in _wanted(args).items():
        best = place == [p for p, d in places().items() if d == device][-1]
        with pyops.isa_cap(place):
            found = [
                finding
                for name in args.ops or OPS
                for dtype in args.dtype
                for finding in _examine(
                    OPS[name],
                    dtype,
                    place,
                    device,
                    most_shapes=2 if args.quick else None,
                    differentiate=not args.quick or best,
                )
            ]
        _show(place, found)
        findings += found
    failures = [finding for finding in findings if not finding.passed]
    for f in failures:
        print(f"FAILED {f.op} {f.dtype} {f.direction} on {f.place}, shape {f.shape}: {f.reason}")
        print(f"  reproduce: {f.reproduction}")
    seconds = time.perf_counter() - start
    print(f"{len(findings) - len(failures)} of {len(findings)} findings pass ({seconds:.0f} s)")
    if args.json:
        _write(args.json, findings)
    return 1 if failures else 0


def _wanted(args: argparse.Namespace) -> dict[str, str]:
    """The places that the options ask for; UserError for one that is not here."""
    here = {place: device for place, device in places().items() if args.device in (None, device)}
    if not here:
        raise UserError("check: no GPU that runs kernels of ours, see `pyops info`")
    if missing := set(args.isa or ()) - set(here):
        raise UserError(f"check: isa must be one of {', '.join(here)}, got {missing.pop()!r}")
    return {place: here[place] for place in args.isa or here}


def _examine(
    op: Op, dtype: str, place: str, device: str, *, most_shapes: int | None, differentiate: bool
) -> Iterator[Finding]:
    """The worst forward and the worst backward finding of one op in one dtype."""
    worst: dict[str, Finding] = {}
    shapes = list(op.shapes.items())[:most_shapes]
    for name, shape in shapes:
        for finding in _try_shape(op, name, shape, dtype, place, device):
            seen = worst.get(finding.direction)
            if seen is None or _badness(finding) > _badness(seen):
                worst[finding.direction] = finding
    if dtype == "float64" and differentiate:
        wrong = _differentiate(op, op.inputs(shapes[0][1], torch.float64, device))
        backward = worst["backward"]
        worst["backward"] = replace(backward, gradcheck=not wrong, reason=backward.reason or wrong)
    yield from worst.values()


def _badness(finding: Finding) -> tuple[bool, float]:
    return not finding.passed, math.inf if math.isnan(finding.used) else finding.used


def _try_shape(
    op: Op, name: str, shape: Shape, dtype: str, place: str, device: str
) -> Iterator[Finding]:
    draw = partial(op.inputs, shape, getattr(torch, dtype), device)
    verdicts: dict[str, Verdict] = {}
    served: dict[str, list[str]] = {"forward": [], "backward": []}
    moved: set[str] = set()
    error = ""
    try:
        verdicts = settle(lambda i: verify(op, draw(draw=i), shape))
        inputs = draw()
        served = kernels(op, inputs)
        moved = _moved(op, inputs)
    except Exception as exception:  # A certificate reports whatever an op raises.
        error = first_line(exception)
    for direction in ("forward", "backward"):
        own = {
            t: v for t, v in verdicts.items() if t.startswith("grad") == (direction != "forward")
        }
        tensor = max(own, key=lambda t: (not own[t].passed, own[t].used), default="")
        v = own.get(tensor, UNJUDGED)
        unsteady = sorted(moved & set(own))
        yield Finding(
            place, op.name, dtype, direction, served[direction], name, tensor,
            v.err_l2, v.native_l2, v.ratio_l2, v.err_max, v.native_max, v.ratio_max, v.used,
            repeats=not (unsteady or error),
            gradcheck=None,
            reason=error
            or (f"{tensor}: {v.reason}" if v.reason else "")
            or (f"{unsteady[0]} changes from call to call" if unsteady else ""),
        )  # fmt: skip


def _moved(op: Op, inputs: Inputs) -> set[str]:
    """The results that are not bit-equal over three calls."""
    with torch.no_grad():
        grad_outputs = random_like(op.run(op.ours, inputs))
    first, *others = (outputs_and_gradients(op, op.ours, inputs, grad_outputs) for _ in range(3))
    return {name for name in first for other in others if not _same_bits(first[name], other[name])}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _differentiate(op: Op, inputs: Inputs) -> str:
    """What finite differences hold against the first and second derivatives, or ""."""
    names = tuple(inputs.tensors)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return op.run(op.ours, Inputs(dict(zip(names, tensors, strict=True)), inputs.options))

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        try:
            check(function, tuple(inputs.tensors.values()), nondet_tol=0.0)
        except Exception as exception:  # GradcheckError, or whatever the op raises.
            return f"{check.__name__}: {first_line(exception)}"
    return ""


def _show(place: str, findings: list[Finding]) -> None:
    columns = [
        "op", "dtype", "direction", "kernel", "error", "native's", "L2 ratio", "max ratio",
        "of allowed", "repeats", "gradcheck", "result",
    ]  # fmt: skip
    words = {True: "yes", False: "NO", None: "–"}
    rows = [
        [
            f.op, f.dtype, f.direction, "+".join(f.kernels) or "–",
            f"{f.err_l2:.1e}", f"{f.native_l2:.1e}", _ratio(f.ratio_l2), _ratio(f.ratio_max),
            f"{f.used:.0%}", words[f.repeats], words[f.gradcheck], "pass" if f.passed else "FAIL",
        ]
        for f in findings
    ]  # fmt: skip
    show(f"pyops check on {place}", columns, rows, ["" if f.passed else "red" for f in findings])


def _ratio(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{ratio:.2f}"


def _write(path: Path, findings: list[Finding]) -> None:
    document = {
        "pyops": pyops.__version__,
        "torch": torch.__version__,
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "GPU": ", ".join(gpus()) or "none",
        "passed": all(f.passed for f in findings),
        "findings": [asdict(f) | {"passed": f.passed} for f in findings],
    }
    write_json(path, document)
