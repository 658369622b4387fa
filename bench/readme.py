"""The README's tables of ratios, and all pictures, made from the committed results:
`python -m bench.readme`.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from . import goals, plots, report
from .harness import DIRECTIONS, Result
from .peaks import Peaks

README = Path(__file__).resolve().parent.parent / "README.md"
RESULTS = README.parent / "bench" / "results"
BEGIN, END = "<!-- made by python -m bench.readme -->\n", "<!-- end -->\n"


def load(path: Path) -> tuple[dict[str, str], list[Result], Peaks]:
    """The machine's facts, results and limits of a file that `report.document` made."""
    document: dict[str, Any] = json.loads(path.read_text())
    entries: list[dict[str, Any]] = document["results"]
    for entry in entries:
        entry |= {name: math.nan for name, value in entry.items() if value is None}
    measured: dict[str, Any] = document["peaks"]
    bandwidth = {int(size): rate for size, rate in measured.pop("bandwidth").items()}
    peaks = Peaks(**measured, bandwidth=bandwidth)
    return document["machine"], [Result(**entry) for entry in entries], peaks


def tables(folder: Path = RESULTS) -> str:
    """A table for each CPU of the results: geometric means, minima in brackets, and how many of
    the ratios are below 1, which neither tells.
    """
    parts = []
    for path in sorted(folder.glob("*-threads.json")):
        machine, results, _ = load(path)
        timed = [r for r in results if not math.isnan(r.ratio)]
        behind = f"{sum(r.ratio < 1 for r in timed)} of {len(timed)} below 1"
        parts.append(f"{report.caption(results, machine)}; {behind}:\n\n{_table(timed)}")
    return "\n".join(parts)


def _table(timed: list[Result]) -> str:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r in timed:
        groups.setdefault((goals.cases_of(r), r.dtype, r.direction), []).append(r.ratio)
    columns = [(d, way) for d in dict.fromkeys(r.dtype for r in timed) for way in DIRECTIONS]
    rows = [
        (cases, *(_cell(groups.get((cases, *column))) for column in columns))
        for cases in dict.fromkeys(key[0] for key in sorted(groups, key=goals.order))
    ]
    return report.markdown_table(("cases", *(f"{d} {way}" for d, way in columns)), rows)


def _cell(ratios: list[float] | None) -> str:
    return f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "–"


def updated(readme: str) -> str:
    """`readme` with the tables of today's results between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def main() -> None:
    """Rewrite the README's part, and the pictures beside the results."""
    README.write_text(updated(README.read_text()))
    for path in RESULTS.glob("*-threads.json"):
        machine, results, peaks = load(path)
        caption = report.caption(results, machine)
        plots.draw_ratios(results, caption, path.with_suffix(".png"))
        plots.draw_rooflines(results, peaks, caption, path.with_name(f"{path.stem}-roofline.png"))


if __name__ == "__main__":
    main()
