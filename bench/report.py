"""Show results: terminal table, JSON and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pyops.cli.table import show

from . import goals
from .harness import Result
from .peaks import Peaks, size_name

COLUMNS = (
    "op", "shape", "dtype", "direction", "layout", "kernel",
    "ours", "native", "best native", "ratio", "quartiles", "of limit",
)  # fmt: skip


def row(r: Result) -> tuple[str, ...]:
    """The cells of one result under `COLUMNS`."""
    head = (r.op, r.shape, r.dtype, r.direction, r.layout, r.kernels)
    if math.isnan(r.ms):
        return (*head, r.failure, "", "", "", "", "")
    return (
        *head,
        _time(r.ms),
        _time(r.native_ms),
        r.native,
        f"{r.ratio:.2f}",
        f"{r.ratio_low:.2f}–{r.ratio_high:.2f}",
        f"{r.limit:.0%} {r.limited_by}" if r.limited_by else "–",
    )


def print_report(results: Sequence[Result]) -> None:
    """Print the table, the means beside their goals, what was skipped, and every failure."""
    marks = ["red" if r.failure or r.ratio < 1 else "" for r in results]
    show("Time per call", COLUMNS, [row(r) for r in results], marks)
    lines = goals.table(results)
    unmet = ["red" if line[-1] == "no" else "" for line in lines]
    show("Ratio: time of the best native way by ours", goals.COLUMNS, lines, unmet)
    reasons = {(peer, reason) for r in results for peer, reason in r.skipped.items()}
    for peer, reason in sorted(reasons):
        print(f"skipped {peer}: {reason}")
    for r in results:
        if r.failure:
            print(f"FAILED {r.op} {r.shape} {r.dtype} {r.direction} {r.layout}: {r.failure}")
            print(f"  reproduce: {r.reproduction}")


def caption(results: Sequence[Result], machine: Mapping[str, str]) -> str:
    """Where and when the results were had, in a line."""
    if any(r.isa.startswith("sm_") for r in results):
        return f"{machine['GPU']}, {machine['date']}"
    isa = machine["ISA"].split()[0]
    return f"{machine['processor']}, {isa}, {machine['threads']} threads, {machine['date']}"


def document(results: Sequence[Result], peaks: Peaks, machine: Mapping[str, str]) -> dict[str, Any]:
    """Everything, for JSON."""
    measured = asdict(peaks)
    measured["bandwidth"] = {str(size): rate for size, rate in peaks.bandwidth.items()}
    return {
        "machine": dict(machine),
        "peaks": measured,
        "results": [asdict(r) for r in results],
    }


def markdown(results: Sequence[Result], peaks: Peaks, machine: Mapping[str, str]) -> str:
    """The report as Markdown."""
    facts = "\n".join(f"- {name}: {fact}" for name, fact in machine.items())
    kind = "loops" if peaks.exact else "matmul"
    flops = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.flops.items())
    rates = ", ".join(
        f"{size_name(size)} {rate / 1e9:.0f}" for size, rate in sorted(peaks.bandwidth.items())
    )
    return "\n".join(
        (
            "# Benchmark",
            f"{facts}\n- GFLOP/s by {kind}: {flops}\n- GB/s by working set: {rates}\n",
            "A ratio is the time of the best native way by ours; above 1 ours is faster.\n",
            markdown_table(goals.COLUMNS, goals.table(results)),
            markdown_table(COLUMNS, [row(r) for r in results]),
        )
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _time(ms: float) -> str:
    return f"{1e3 * ms:.1f} µs" if ms < 0.1 else f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"
