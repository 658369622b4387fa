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
    console = Console()
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    between = 3 * len(columns) + 1
    room = console.width - between if console.is_terminal else None
    widths = _widths(columns, rows, room)
    for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
        table.add_column(column, justify="right" if _numeric(rows, i) else "left", width=width)
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), style=(marks[i] if marks else "") or None)
    console = Console(width=max(sum(widths) + between, len(title)))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), end="\n\n")


def _widths(columns: Row, rows: Sequence[Row], room: int | None) -> list[int]:
    """As wide as each column needs; to find room, the widest first, lines break between words."""
    cells = list(zip(columns, *rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    least = [max(len(word) for cell in column for word in (*cell.split(), "")) for column in cells]
    while room is not None and sum(widths) > room and widths != least:
        spare = [i for i, width in enumerate(widths) if width > least[i]]
        widths[max(spare, key=widths.__getitem__)] -= 1
    return widths


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
