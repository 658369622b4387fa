"""The rows of cases that belong together, their means, and what each row is to reach.

A goal holds for a geometric mean. Where all was timed on AMX, rows have goals of their own, and no
case may be slower than native. With fewer instructions in use only the mean of all has one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .harness import Result

COLUMNS = (
    "cases", "dtype", "direction", "measure", "number", "mean", "minimum", "at", "goal", "met",
)  # fmt: skip
MEASURES: dict[str, Callable[[Result], float]] = {
    "ratio": lambda r: r.ratio,
    "ratio to eager": lambda r: r.peers_ms.get("eager", math.nan) / r.ms,
    "share of limit": lambda r: r.limit,
    "GFLOP/s": lambda r: r.gflops,
}


@dataclass(frozen=True)
class Goal:
    """The least mean of a measure, forward and forward+backward."""

    forward: float
    both: float
    measure: str = "ratio"

    def least(self, direction: str) -> float:
        """For that direction."""
        return self.forward if direction == "forward" else self.both


HIGH = "products in precision high"
SQUARE, MANY, FEW = "linear, 2048³", "linear, 64 rows or more", "linear, fewer rows"
FIRST, FUSED, CHAIN = "first layers, 3 channels", "conv2d_relu", "conv2d_relu_max_pool2d"
POOL, POOL_LAST = "max_pool2d, contiguous", "max_pool2d, channels_last"
ATTENTION = "scaled_dot_product_attention"
SEQUENCES, PACKED, CELLS = "lstm, gru", "lstm, gru, packed", "lstm_cell, gru_cell"

# Pooling of contiguous images is held against native's of such: that of channels_last ones, which
# the ratio counts too, has another input.
_POOL = (Goal(10, 10, "ratio to eager"), Goal(0.7, 0.7, "share of limit"))
_POOL_LAST = (Goal(1.2, 1.2), Goal(0.7, 0.7, "share of limit"))
AMX: dict[tuple[str, str], tuple[Goal, ...]] = {
    (SQUARE, "float32"): (Goal(1.7, 1.7),),
    (SQUARE, "bfloat16"): (Goal(1.5, 1.5), Goal(0.55, 0.55, "share of limit")),
    (MANY, "float32"): (Goal(1.7, 1.7),),
    (MANY, "bfloat16"): (Goal(1.5, 1.5),),
    (FEW, "float32"): (Goal(1, 1),),
    (FEW, "bfloat16"): (Goal(1, 1),),
    (FUSED, "float32"): (Goal(1.8, 1.8),),
    (FUSED, "bfloat16"): (Goal(1.5, 1.8),),
    (FIRST, "float32"): (Goal(2, 3),),
    (FIRST, "bfloat16"): (Goal(2, 3),),
    (CHAIN, "float32"): (Goal(2, 2),),
    (CHAIN, "bfloat16"): (Goal(2, 2),),
    (POOL, "float32"): _POOL,
    (POOL, "bfloat16"): _POOL,
    (POOL_LAST, "float32"): _POOL_LAST,
    (POOL_LAST, "bfloat16"): _POOL_LAST,
    (ATTENTION, "float32"): (Goal(2, 2),),
    (ATTENTION, "bfloat16"): (Goal(4, 4), Goal(1200, 1200, "GFLOP/s")),
    (SEQUENCES, "float32"): (Goal(1.7, 2),),
    (SEQUENCES, "bfloat16"): (Goal(1.5, 3),),
    (PACKED, "float32"): (Goal(4, 4),),
    (PACKED, "bfloat16"): (Goal(4, 4),),
    (CELLS, "float32"): (Goal(1.5, 2),),
    (CELLS, "bfloat16"): (Goal(1.5, 3),),
    (HIGH, "float32-high"): (Goal(3, 3),),
}
"""By cases and dtype, where the ISA in use is amx."""

WHOLE = {"avx2": 1.0, "avx512": 1.2, "avx512_bf16": 1.2}
"""The least mean ratio of everything where no more than that is in use, by native too."""


def cases_of(r: Result) -> str:
    """The row of a result."""
    if r.dtype == "float32-high":
        return HIGH
    if r.shape == "tiny":
        return "tiny calls"
    if r.op in ("linear", "linear_relu"):
        n, i, o = (r.sizes.get(size, 0) for size in "nio")
        return SQUARE if n == i == o == 2048 else MANY if n >= 64 else FEW
    if r.op == ATTENTION and r.sizes.get("l") == 1:
        return "attention of one query"
    if r.op in ("conv2d", "conv2d_relu") and r.sizes.get("c") == 3:
        return FIRST
    if r.op == "max_pool2d":
        return f"max_pool2d, {r.layout}"
    if r.op in ("lstm", "gru"):
        return PACKED if r.sizes.get("lengths") else SEQUENCES
    return CELLS if r.op in ("lstm_cell", "gru_cell") else r.op


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Mean and minimum of each row beside its goal, under `COLUMNS`; the last row is all of it."""
    timed = [r for r in results if not math.isnan(r.ratio)]
    if not timed:
        return []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in timed:
        groups.setdefault((cases_of(r), r.dtype, r.direction), []).append(r)
    lines = [line for key in sorted(groups, key=order) for line in _lines(*key, groups[key])]
    return [*lines, _whole(timed)]


def order(key: tuple[str, str, str]) -> tuple[int, str, str, str]:
    """The rows in the order of their goals, others behind."""
    rows = [row for row, _ in AMX]
    return (rows.index(key[0]) if key[0] in rows else len(rows), *key)


def _lines(
    row: str, dtype: str, direction: str, own: Sequence[Result]
) -> Iterator[tuple[str, ...]]:
    goals = AMX.get((row, dtype), ()) if all(r.isa == "amx" for r in own) else ()
    by_measure = {goal.measure: goal.least(direction) for goal in goals}
    for measure in dict.fromkeys(("ratio", *by_measure)):
        measured = [(value, r) for r in own if (value := MEASURES[measure](r)) > 0]
        if measured:
            mean = statistics.geometric_mean(value for value, _ in measured)
            head = (row, dtype, direction, measure)
            yield (*head, *_cells(measured, mean, by_measure.get(measure)))


def _whole(timed: Sequence[Result]) -> tuple[str, ...]:
    measured = [(r.ratio, r) for r in timed]
    mean = statistics.geometric_mean(r.ratio for r in timed)
    isas = {r.isa for r in timed}
    least = WHOLE.get(isas.pop()) if len(isas) == 1 else None
    cells = _cells(measured, mean, least)
    if all(r.isa == "amx" for r in timed):
        slowest = min(r.ratio for r in timed)
        cells = (*cells[:-2], "≥ 1 at all", "yes" if slowest >= 1 else "no")
    return ("all", "", "", "ratio", *cells)


def _cells(
    measured: Sequence[tuple[float, Result]], mean: float, goal: float | None
) -> tuple[str, ...]:
    """The cells from "number" on."""
    least, at = min(measured, key=lambda entry: entry[0])
    where = ", ".join((at.op, at.shape, at.dtype, at.direction, at.layout))
    wanted = ("", "") if goal is None else (f"≥ {goal:g}", "yes" if mean >= goal else "no")
    return (str(len(measured)), _number(mean), _number(least), where, *wanted)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
