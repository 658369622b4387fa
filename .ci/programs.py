"""The programs that `.ci/gpu.py` runs: where they write, what they find, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "gpu"
SITE = OUT / "site"
GRACE = 20.0  # seconds in which an interrupted program may still write down what it has


@dataclass
class Outcome:
    """How a stage, or a part of one, ended."""

    stage: str
    result: str = "passed"
    """passed, failed, out of time, unavailable."""
    summary: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """True where the whole must not end well."""
        return self.result in ("failed", "out of time")


def run(command: Sequence[str], log: str, seconds: float, **variables: str) -> int | None:
    """The program's exit code, None when it had to be stopped; what it prints goes to a file.

    It is interrupted first, as by Ctrl-C, and killed with all its children if that does not help.
    A shell's background jobs ignore that signal and would pass it on: hence env.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        "PATH": search_path(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(SITE), inherited])),
        **variables,
    }
    with (OUT / log).open("w") as file:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *command], cwd=ROOT, env=environment, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def search_path() -> str:
    """Where programs are found: what was installed, this Python's, the shell's, and CUDA's own."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    own = [str(SITE / "bin"), str(Path(sys.executable).parent)]
    return os.pathsep.join([*own, os.environ.get("PATH", os.defpath), f"{home}/bin"])


def last_lines(log: str, count: int = 15) -> list[str]:
    """The end of what a program printed."""
    return (OUT / log).read_text(errors="replace").splitlines()[-count:]


def result_of(code: int | None) -> str:
    """The word for an exit code."""
    return "out of time" if code is None else "failed" if code else "passed"
