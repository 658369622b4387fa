"""What compute-sanitizer is asked, and what its report says about kernels of ours."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # its exit code when it has something to report
OURS = re.compile(r"pyops|cutlass")
KERNEL = re.compile(r"\b[a-z]\w*_kernel\b")
SUMMARY = re.compile(
    r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards? displayed)\b(?! were)"
)
RECORD = re.compile(
    r"^=+ (?!COMPUTE-SANITIZER|\w+ SUMMARY|(?:at|by|and|in) |Address |Saved )(\S.*)"
)


def command(tool: str, program: list[str]) -> list[str]:
    """`program` under one of TOOLS.

    initcheck must see every kernel write; the others need to look at none but ours.
    """
    options = ["--launch-timeout", "0", "--target-processes", "application-only"]
    options += ["--error-exitcode", str(FOUND), "--print-limit", "1000", "--show-backtrace", "no"]
    if tool != "initcheck":
        options += ["--kernel-name", "kns=pyops", "--kernel-name", "kns=cutlass"]
    if tool == "memcheck":
        # PyTorch asks whether it may do what not every GPU can: that is no error.
        options += ["--padding", "512", "--report-api-errors", "no"]
    return ["compute-sanitizer", "--tool", tool, *options, *program]


@dataclass
class Report:
    """What one tool found."""

    total: int | None
    """Errors or hazards anywhere, None where the tool did not come to an end."""
    ours: Counter[str] = field(default_factory=Counter)
    """How often each complaint about a kernel of ours was printed."""
    complaint: str = ""
    """The first line that is no record of a kernel of ours."""

    def verdict(self, code: int | None) -> tuple[str, str]:
        """Passed, failed or unavailable, and why, after the program ended with `code`."""
        if self.ours:
            most = ", ".join(f"{complaint} ({n})" for complaint, n in self.ours.most_common(3))
            return "failed", most
        if "not supported" in self.complaint.lower():
            return "unavailable", self.complaint
        if self.total is None:
            return "failed", self.complaint or "it ended without a summary"
        if code not in (0, FOUND):
            return "failed", f"the program ended with {code}"
        return "passed", f"{self.total} outside our kernels" if self.total else "clean"


def parse(text: str) -> Report:
    """The report of a tool from all that it and the program printed."""
    report, record = Report(total=None), ""
    # A record is its own line and those below that say where; an empty one ends the last.
    for line in [*text.splitlines(), "========="]:
        if not line.startswith("======="):
            continue
        begins = RECORD.match(line)
        if begins or line.strip("= ") == "" or "SUMMARY" in line:
            _file(report, record)
            record = ""
        if begins:
            record = begins[1]
        elif record:
            record += "\n" + line.strip("= ")
        if summary := SUMMARY.match(line):
            report.total = (report.total or 0) + int(summary[1])
    return report


def _file(report: Report, record: str) -> None:
    if OURS.search(record):
        kernel = KERNEL.search(record)
        what = re.sub(r" (?:between|reported between).*", "", record.splitlines()[0])
        report.ours[f"{what.rstrip('.')} in {kernel[0] if kernel else 'a kernel'}"] += 1
    elif record and not report.complaint:
        report.complaint = record.splitlines()[0]
