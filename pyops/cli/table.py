"""Tables in a terminal: by rich where it is installed, else in plain columns."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def show(title: str, columns: Row, rows: Sequence[Row], marks: Sequence[str] | None = None) -> None:
    """Print one table; `marks` gives each row a rich style such as "red", or "" for none."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _show_plain(title, columns, rows)
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if _numeric(rows, i) else "left")
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), style=(marks[i] if marks else "") or None)
    # As wide as the columns need: a wrapped line loses nothing, an ellipsis does.
    width = Console(width=1000).measure(table).maximum
    console = Console()
    Console(width=max(console.width, width) if console.is_terminal else width).print(table)


def _show_plain(title: str, columns: Row, rows: Sequence[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    numeric = [_numeric(rows, i) for i in range(len(columns))]
    print(title)
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())
    print()


def _numeric(rows: Sequence[Row], column: int) -> bool:
    cells = [row[column] for row in rows if row[column] not in ("", "–")]
    return bool(cells) and all(cell[0].isdigit() for cell in cells)
