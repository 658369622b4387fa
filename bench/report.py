"""Show results: terminal table, JSON, Markdown, and a picture of ratios and rooflines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyops.cli.table import show

from .harness import DIRECTIONS, Result
from .peaks import Peaks

COLUMNS = (
    "op", "shape", "dtype", "direction", "layout", "kernel",
    "ours", "native", "best native", "ratio", "quartiles", "of limit",
)  # fmt: skip
SUMMARY = ("op", "cases", "geometric mean", "minimum", "at")
COLOURS = {"float32": "#2a6f97", "bfloat16": "#e07a1f", "float16": "#6a994e", "float64": "#7d5ba6"}


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


def summary(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Geometric mean and minimum of the ratios of each op, under `SUMMARY`."""
    timed = [r for r in results if not math.isnan(r.ratio)]
    rows: list[tuple[str, ...]] = []
    for op in dict.fromkeys(r.op for r in timed):
        own = [r for r in timed if r.op == op]
        least = min(own, key=lambda r: r.ratio)
        mean = statistics.geometric_mean(r.ratio for r in own)
        where = f"{least.shape}, {least.dtype}, {least.direction}, {least.layout}"
        rows.append((op, str(len(own)), f"{mean:.2f}", f"{least.ratio:.2f}", where))
    return rows


def print_report(results: Sequence[Result]) -> None:
    """Print the table, the summary per op, what was skipped, and every failure."""
    marks = ["red" if r.failure or r.ratio < 1 else "" for r in results]
    show("Time per call", COLUMNS, [row(r) for r in results], marks)
    show("Ratio: time of the best native way by ours", SUMMARY, summary(results))
    reasons = {(peer, reason) for r in results for peer, reason in r.skipped.items()}
    for peer, reason in sorted(reasons):
        print(f"skipped {peer}: {reason}")
    for r in results:
        if r.failure:
            print(f"FAILED {r.op} {r.shape} {r.dtype} {r.direction} {r.layout}: {r.failure}")
            print(f"  reproduce: {r.reproduction}")


def document(results: Sequence[Result], peaks: Peaks, machine: Mapping[str, str]) -> dict[str, Any]:
    """Everything as plain JSON values; what was not measured is null."""
    measured = asdict(peaks)
    measured["bandwidth"] = {str(size): rate for size, rate in peaks.bandwidth.items()}
    return {
        "machine": dict(machine),
        "peaks": measured,
        "results": [{name: _plain(v) for name, v in asdict(r).items()} for r in results],
    }


def markdown(results: Sequence[Result], peaks: Peaks, machine: Mapping[str, str]) -> str:
    """The report as Markdown."""
    facts = "\n".join(f"- {name}: {fact}" for name, fact in machine.items())
    kind = "loops" if peaks.exact else "matmul"
    flops = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.flops.items())
    rates = ", ".join(
        f"{_size(size)} {rate / 1e9:.0f}" for size, rate in sorted(peaks.bandwidth.items())
    )
    return "\n".join(
        (
            "# Benchmark",
            f"{facts}\n- GFLOP/s by {kind}: {flops}\n- GB/s by working set: {rates}\n",
            "A ratio is the time of the best native way by ours; above 1 ours is faster.\n",
            _markdown_table(SUMMARY, summary(results)),
            _markdown_table(COLUMNS, [row(r) for r in results]),
        )
    )


def draw(results: Sequence[Result], peaks: Peaks, path: Path) -> None:
    """Bars of the ratios of each direction, and every case under its roofline, as a PNG."""
    from matplotlib.figure import Figure

    timed = [r for r in results if not math.isnan(r.ratio)]
    cases = list(dict.fromkeys((r.op, r.shape) for r in timed))
    height = max(6.0, 0.36 * len(cases) + 1.5)
    figure = Figure(figsize=(20, height), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(6, height - 5.99))
    bars = None
    for column, direction in enumerate(DIRECTIONS):
        bars = figure.add_subplot(grid[:, column], sharex=bars, sharey=bars)
        _draw_ratios(bars, [r for r in timed if r.direction == direction], cases)
        bars.tick_params(labelleft=column == 0)
        bars.set_title(direction, fontsize=10, pad=36)
    _draw_rooflines(figure.add_subplot(grid[0, 2]), timed, peaks)
    figure.savefig(path, dpi=100)


def _draw_ratios(axes: Any, timed: Sequence[Result], cases: Sequence[tuple[str, str]]) -> None:
    kinds = list(dict.fromkeys((r.dtype, r.layout) for r in timed))
    thickness = 0.8 / max(1, len(kinds))
    for i, (dtype, layout) in enumerate(kinds):
        own = [r for r in timed if (r.dtype, r.layout) == (dtype, layout)]
        at = [cases.index((r.op, r.shape)) + (i + 0.5) * thickness - 0.4 for r in own]
        whiskers = [
            [max(0.0, r.ratio - r.ratio_low) for r in own],
            [max(0.0, r.ratio_high - r.ratio) for r in own],
        ]
        axes.barh(
            at, [r.ratio - 1 for r in own], thickness, left=1, xerr=whiskers, ecolor="#333333",
            color=COLOURS[dtype], alpha=1.0 if layout == "contiguous" else 0.5,
            error_kw={"linewidth": 0.7}, label=f"{dtype}, {layout}",
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}×")
    least, most = axes.get_xlim()
    axes.set_xlim(min(least, 0.7), max(most, 1.5))
    axes.set_xlabel("best native time / ours (right of 1×: ours is faster)")
    axes.set_yticks(range(len(cases)), [", ".join(case) for case in cases], fontsize=8)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)


def _draw_rooflines(axes: Any, timed: Sequence[Result], peaks: Peaks) -> None:
    from matplotlib.ticker import LogLocator

    points = [r for r in timed if r.intensity > 0]
    dtypes = list(dict.fromkeys(r.dtype for r in points))
    if not points:
        axes.set_axis_off()
        return
    low = min(r.intensity for r in points) / 2
    high = max(r.intensity for r in points) * 2
    slowest, fastest = min(peaks.bandwidth.values()), max(peaks.bandwidth.values())
    for dtype in dtypes:
        peak = peaks.flops[dtype]
        for rate, style, where in ((fastest, "--", "cache"), (slowest, "-", "memory")):
            corner = min(max(peak / rate, low), high)
            xs = (low, corner, high)
            ys = [min(peak, rate * x) / 1e9 for x in xs]
            label = f"{dtype} limit from {where}"
            axes.plot(xs, ys, style, color=COLOURS[dtype], linewidth=1, label=label)
    markers = dict(zip(dict.fromkeys(r.op for r in points), "osD^vP*X<>h", strict=False))
    for op, marker in markers.items():
        for dtype in dtypes:
            own = [r for r in points if (r.op, r.dtype) == (op, dtype)]
            axes.scatter(
                [r.intensity for r in own], [r.gflops for r in own], s=28, marker=marker,
                color=COLOURS[dtype], alpha=0.75, linewidths=0,
            )  # fmt: skip
        axes.scatter([], [], marker=marker, color="#555555", label=op)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("GFLOP/s")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _time(ms: float) -> str:
    return f"{1e3 * ms:.1f} µs" if ms < 0.1 else f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
