"""Pictures of results: the ratios as bars, and every case under its roofline.

The roofline is Williams, Waterman and Patterson's (2009), its ceilings measured in the same run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import DIRECTIONS, Result
from .peaks import Peaks, size_name

COLOURS = {
    "float32": "#2a6f97", "bfloat16": "#e07a1f", "float16": "#6a994e", "float64": "#7d5ba6",
    "float32-high": "#6fb1d6",
}  # fmt: skip
NAMED = 4
"""Cases furthest below their limit whose names stand in a panel."""


def draw_ratios(results: Sequence[Result], caption: str, path: Path) -> None:
    """Bars of the ratios of each direction, a paragraph for each op, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    timed = [r for r in results if not math.isnan(r.ratio)]
    kinds = list(dict.fromkeys((r.dtype, r.layout) for r in timed))
    rows = _rows(timed)
    height = 1.6 + len(rows) * (0.13 + 0.04 * len(kinds))
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        _draw_ratios(axes, [r for r in timed if r.direction == direction], rows, kinds)
        axes.set_title(direction, fontsize=10)
    least, most = min(panels[0].get_xlim()[0], 0.7), max(panels[0].get_xlim()[1], 1.5)
    panels[0].set_xlim(least, most)
    between = (1, 1.5) if most < 20 * least else (1,)  # as many as have room
    panels[0].xaxis.set_major_locator(LogLocator(base=2, subs=between, numticks=99))
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    panels[0].set_yticks(range(len(rows)), [shape or op for op, shape in rows])
    for label, (_, shape) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set(fontsize=9, fontweight="normal" if shape else "bold")
    label = "speed in units of the best native way's (right of 1×: ours is faster)"
    figure.supxlabel(label, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": max(1, len(kinds))}
    figure.legend(handles, labels, title=caption, fontsize=9, frameon=False, **place)
    figure.savefig(path, dpi=130)


def _rows(timed: Sequence[Result]) -> list[tuple[str, str]]:
    """Op and shape of each row; a heading, without a shape, before the first row of each op."""
    cases = list(dict.fromkeys((r.op, r.shape) for r in timed))
    ops = dict.fromkeys(op for op, _ in cases)
    return [row for op in ops for row in ((op, ""), *(case for case in cases if case[0] == op))]


def _draw_ratios(
    axes: Any,
    timed: Sequence[Result],
    rows: Sequence[tuple[str, str]],
    kinds: Sequence[tuple[str, str]],
) -> None:
    from matplotlib.ticker import NullLocator

    in_row: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for r in timed:
        in_row[r.op, r.shape].append((r.dtype, r.layout))
    for dtype, layout in kinds:
        own = [r for r in timed if (r.dtype, r.layout) == (dtype, layout)]
        beside = [in_row[r.op, r.shape] for r in own]
        thickness = [0.8 / len(bars) for bars in beside]
        at = [
            rows.index((r.op, r.shape)) - 0.4 + (bars.index((dtype, layout)) + 0.5) * each
            for r, bars, each in zip(own, beside, thickness, strict=True)
        ]
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
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}×")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_rooflines(results: Sequence[Result], peaks: Peaks, caption: str, path: Path) -> None:
    """A panel for each dtype: rate over intensity, below it what each op reached of its limit."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    timed = [r for r in results if r.limited_by]
    dtypes = list(dict.fromkeys(r.dtype for r in timed)) or ["float32"]
    ops = list(dict.fromkeys(r.op for r in timed))
    colours = {op: f"C{i}" if i < 10 else "#000000" for i, op in enumerate(ops)}
    figure = Figure(figsize=(8 * len(dtypes) + 2.5, 10), layout="constrained")
    figure.suptitle(caption)
    panels = figure.subplots(2, len(dtypes), squeeze=False, height_ratios=(5, 2), sharey="row")
    for (above, below), dtype in zip(panels.T, dtypes, strict=True):
        own = [r for r in timed if r.dtype == dtype]
        _draw_roofs(above, [r for r in own if r.intensity > 0], dtype, peaks)
        _draw_shares(below, ops, most=max((r.limit for r in timed), default=0.0))
        for r in own:
            style = _style(colours[r.op], r.direction)
            if r.intensity > 0:
                above.scatter(r.intensity, r.gflops, s=36, **style, zorder=3)
            beside = -0.15 if r.direction == "forward" else 0.15
            below.scatter(ops.index(r.op) + beside, r.limit, s=24, **style)
    # Fewer products do for some: see docs/performance.md on Winograd's filtering.
    panels[0, 0].set_ylabel("GFLOP/s, of the operations by definition")
    panels[1, 0].set_ylabel("share of the limit that binds")
    dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
    handles = [Line2D([], [], color=colour, label=op, **dot) for op, colour in colours.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    faces = zip(DIRECTIONS, ("#555555", "none"), strict=True)
    ways = [Line2D([], [], color="#555555", mfc=face, label=way, **dot) for way, face in faces]
    panels[0, 0].legend(handles=ways, loc="lower right")
    figure.savefig(path, dpi=100)


def _style(colour: str, direction: str) -> dict[str, Any]:
    """Filled forward, hollow forward+backward."""
    face = colour if direction == "forward" else "none"
    return {"facecolors": face, "edgecolors": colour, "linewidths": 1.2, "alpha": 0.8}


def _draw_roofs(axes: Any, points: Sequence[Result], dtype: str, peaks: Peaks) -> None:
    """The measured ceilings, their values written on them, and the names of the lowest cases."""
    from matplotlib.ticker import LogLocator

    axes.set_title(dtype)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("operations per byte that must move")
    axes.grid(which="major", alpha=0.35)
    axes.grid(which="minor", alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if not points:
        return
    peak, slowest = peaks.flops[dtype], max(peaks.bandwidth)
    fastest = max(peaks.bandwidth, key=peaks.bandwidth.__getitem__)
    low = min(0.5, *(r.intensity for r in points)) / 2
    high = max(r.intensity for r in points) * 4
    axes.set_xlim(low, high)
    axes.axhline(peak / 1e9, color="black", linewidth=1.3)
    beside = {"xytext": (-4, 4), "textcoords": "offset points", "ha": "right", "fontsize": 9}
    axes.annotate(f"{dtype} peak, {peak / 1e9:.0f} GFLOP/s", (high, peak / 1e9), **beside)
    for size, what in ((fastest, "cache"), (slowest, "memory")):
        rate = peaks.bandwidth[size]
        corner = min(peak / rate, high)
        axes.plot((low, corner), (low * rate / 1e9, corner * rate / 1e9), "k-", linewidth=1)
        x = math.sqrt(low * corner)
        y = x * rate / 1e9
        axes.text(
            x, 1.1 * y, f"{what} ({size_name(size)}), {rate / 1e9:.0f} GB/s", fontsize=9,
            ha="center", va="bottom", rotation=math.degrees(math.atan2(y, x)),
            rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip
    for r in _lowest(points):
        axes.annotate(
            f"{r.shape}, {r.limit:.0%}", (r.intensity, r.gflops), xytext=(8, -3),
            textcoords="offset points", fontsize=8, color="#333333",
        )  # fmt: skip


def _draw_shares(axes: Any, ops: Sequence[str], most: float) -> None:
    """A column for each op, for the ones without arithmetic too, and room up to `most`."""
    axes.set_xticks(range(len(ops)), ops, rotation=25, ha="right", fontsize=9)
    axes.set_ylim(0, max(1.1, 1.05 * most))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _lowest(points: Sequence[Result]) -> list[Result]:
    """The cases furthest below their limit, without those whose names would meet."""
    named: list[Result] = []
    for r in sorted(points, key=lambda r: r.limit):
        if all(_apart(r, other) for other in named):
            named.append(r)
    return named[:NAMED]


def _apart(a: Result, b: Result) -> bool:
    height = abs(math.log(a.gflops / b.gflops))
    return height > 0.2 or abs(math.log(a.intensity / b.intensity)) > 2.5
