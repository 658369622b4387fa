"""Compare this revision with another one: the same cases, in subprocesses that take turns.

Both sides are set in relation to native in their own process first, so what is compared is not two
times taken minutes apart but two ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyops.cli import UserError
from pyops.cli.table import show

ROOT = Path(__file__).resolve().parent.parent
TURNS = 3
Key = tuple[str, ...]


def compare_revisions(ref: str, here: Path = ROOT) -> int:
    """Run this process's own command here and at `ref`, and print how much faster each case is.

    1 when nothing could be compared.
    """
    command = _without_against(sys.orig_argv[1:])
    with _revision(here, ref) as there, tempfile.TemporaryDirectory() as results:
        ratios: dict[Path, dict[Key, list[float]]] = {
            root: defaultdict(list) for root in (here, there)
        }
        for turn in range(TURNS):
            for root in (here, there) if turn % 2 else (there, here):
                for r in _run(root, command, Path(results, "results.json")):
                    if r["ratio"]:
                        key = tuple(r[k] for k in ("op", "shape", "dtype", "direction", "layout"))
                        ratios[root][key].append(r["ratio"])
    rows = []
    for key in ratios[here].keys() & ratios[there].keys():
        now, then = (statistics.median(ratios[root][key]) for root in (here, there))
        rows.append((*key, f"{then:.2f}", f"{now:.2f}", f"{now / then:.2f}"))
    columns = ("op", "shape", "dtype", "direction", "layout", ref, "now", "speedup")
    show(f"Ratio to native here and at {ref}", columns, sorted(rows))
    return 0 if rows else 1


def _without_against(arguments: list[str]) -> list[str]:
    kept = list(arguments)
    for i, argument in enumerate(arguments):
        if argument.startswith("--against"):
            del kept[i : i + (1 if "=" in argument else 2)]
    return kept


@contextmanager
def _revision(here: Path, ref: str) -> Iterator[Path]:
    """A built worktree of `ref`, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "revision")
        _call(here, "git", "worktree", "add", "--detach", str(there), ref)
        try:
            _call(there, sys.executable, "setup.py", "build_ext", "--inplace")
            yield there
        finally:
            _call(here, "git", "worktree", "remove", "--force", str(there))


def _run(root: Path, command: list[str], results: Path) -> list[dict[str, Any]]:
    results.unlink(missing_ok=True)
    # 1 is the code of a run with a failed case: the others still count.
    _call(root, sys.executable, *command, "--json", str(results), accept=(0, 1))
    found: list[dict[str, Any]] = json.loads(results.read_text())["results"]
    return found


def _call(folder: Path, *command: str, accept: tuple[int, ...] = (0,)) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in accept:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"bench: {' '.join(command[:4])} failed in {folder}: {' '.join(said)}")
