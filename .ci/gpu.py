"""Proof on a GPU in one command: build, test, sanitize and benchmark. `make gpu`, `gpu.py --help`.

Uses the PyTorch of the Python that runs it, and installs beside the build what else is missing. A
stage that fails, or runs out of its share of the time, does not keep the later ones from running;
a finished build is only brought up to date. Ends with one table, one JSON and an exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import programs
import sanitizer
from gpu_build import build
from programs import Outcome, last_lines, result_of, run, search_path

# Each operator by its folder: how the names of its tests and of its kernels begin.
OPERATORS = {
    "attention": ("attention",),
    "conv2d": ("conv2d",),
    "linear_relu": ("linear",),
    "max_pool2d": ("max_pool2d",),
    "rnn": ("rnn", "lstm", "gru"),
}
# Of the time that is left when a stage begins, its part beside those after it. The build is needed
# by all and may take whatever it takes.
WEIGHTS = {"build": 100.0, "test": 4.0, "sanitize": 2.0, "bench": 3.0}
MEMORY_PER_WORKER = 4 << 30  # bytes of the GPU: its context, and the largest common tests
# Few tests at a time, so that the first file's come first. By groups xdist would have no work for
# the workers that replace the ones which died.
DEALING = ("--dist", "load", "--maxschedchunk", "2")
# Seconds of a test, after which its process ends: no exception reaches one that waits for a kernel.
PATIENCE = 90
# A kernel alone, before all that is made of it.
KERNELS = ("tests/test_cuda_kernels.py",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages: 0 when all is well, 1 when something failed, 2 when nothing can run."""
    args = _parser().parse_args(argv)
    stages = [name for name in STAGES if name in args.stage]
    gpu = find_gpu()
    if "problem" in gpu and stages != ["build"]:
        print(f"gpu: {gpu['problem']}", file=sys.stderr)
        return 2
    programs.OUT.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    outcomes: list[Outcome] = []
    for i, name in enumerate(stages):
        left = [WEIGHTS[later] for later in stages[i:]]
        seconds = max(programs.GRACE, (end - time.monotonic()) * left[0] / sum(left))
        print(f"{name} …", flush=True)
        start = time.monotonic()
        found = STAGES[name](args, gpu, seconds)
        found[0].seconds = time.monotonic() - start
        outcomes += found
    report(outcomes, gpu, args)
    return 1 if any(outcome.bad for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="some of the stages")
    add("--only", nargs="+", choices=OPERATORS, default=[], metavar="OP",
        help=f"of {', '.join(OPERATORS)}: the tests, kernels and benchmarks of these")  # fmt: skip
    add("--kernels", action="store_true", help="of the tests those of each kernel alone")
    add("--minutes", type=float, default=9.0, help="for everything (default: %(default)s)")
    add("--wheels", type=Path, metavar="DIR", help="install these instead of asking an index")
    return parser


def find_gpu() -> dict[str, Any]:
    """Facts about the GPU as this Python's PyTorch sees it, or the `problem` with it."""
    script = """
import json, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
if gpu:
    facts |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}",
              "processors": gpu.multi_processor_count, "memory": gpu.total_memory}
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it ended silently"])[-1]
        return {"problem": f"no PyTorch that works in {sys.executable} ({said})"}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "gpu" not in facts:
        facts["problem"] = f"no GPU that torch {facts['torch']} of {sys.executable} can use"
    return facts


def test(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Every test that needs a GPU, side by side as far as its memory allows."""
    words = [word for op in args.only for word in OPERATORS[op]]
    workers = max(1, min(os.cpu_count() or 1, gpu["memory"] // MEMORY_PER_WORKER))
    results = programs.OUT / "tests.xml"
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-m", "cuda", "-n", str(workers), *DEALING,
        "--max-worker-restart", "100", "--timeout", str(PATIENCE), "--timeout-method", "thread",
        "-o", "junit_family=xunit1", f"--junitxml={results}", "--verbosity", "1",
        "--durations", "20", *(["-k", " or ".join(words)] if words else []),
        *(KERNELS if args.kernels else ()),
    ]  # fmt: skip
    code = run(command, "tests.log", seconds)
    if not results.exists():
        return [
            Outcome("test", result_of(code), "no results: tests.log", 0, last_lines("tests.log"))
        ]
    log = (programs.OUT / "tests.log").read_text(errors="replace")
    summary, problems = read_tests(results, under_way(log))
    return [Outcome("test", result_of(code), summary, 0, problems)]


def under_way(log: str) -> set[str]:
    """The tests that had begun when the log ended: one of them may have waited for its kernel."""
    begun = re.findall(r"^(\S+::.*) $", log, re.M)
    ended = re.findall(r"^\[gw\d+\] \[ *\d+%\] [A-Z]+ (\S+::.*) $", log, re.M)
    return set(begun) - set(ended)


def read_tests(results: Path, unfinished: Set[str] = frozenset()) -> tuple[str, list[str]]:
    """How many tests passed, and every one that did not with its reason."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    problems = [f"{name}: under way when time was over" for name in sorted(unfinished)]
    for case in xml.parse(results).getroot().iter("testcase"):
        if case.get("name") is None:  # one that is under way
            continue
        bad = [part for kind in ("failure", "error") for part in case.findall(kind)]
        skipped = case.find("skipped") is not None
        counts["failed" if bad else "skipped" if skipped else "passed"] += 1
        if bad:
            file = case.get("file", "")
            module = file.removesuffix(".py").replace("/", ".")
            inside = case.get("classname", "").removeprefix(module).strip(".")
            name = "::".join(filter(None, [file, inside, case.get("name")]))
            reason = (bad[0].get("message") or "no reason").strip().splitlines()[0]
            problems.append(f"{name}: {reason}")
    counts["unfinished"] = len(unfinished)
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "no test", problems


def sanitize(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Every kernel once under each of compute-sanitizer's tools, all tools at a time."""
    if shutil.which("compute-sanitizer", path=search_path()) is None:
        return [Outcome("sanitize", "unavailable", "no compute-sanitizer is found")]
    prefixes = [word for op in args.only for word in OPERATORS[op]]
    program = [sys.executable, str(programs.ROOT / "tests" / "kernel_calls.py")]
    program += ["--only", *prefixes] if prefixes else []

    def watch(tool: str) -> Outcome:
        log, start = f"{tool}.log", time.monotonic()
        # Each tensor an allocation of its own: then what lies beyond its end is nobody's.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        code = run(sanitizer.command(tool, program), log, seconds, **alone)
        found = sanitizer.parse((programs.OUT / log).read_text(errors="replace"))
        result, why = found.verdict(code) if code is not None else ("out of time", "")
        problems = [f"{what}: {n} times" for what, n in found.ours.items()]
        spent = time.monotonic() - start
        return Outcome(tool, result, why, spent, problems or last_lines(log) * (result == "failed"))

    with ThreadPoolExecutor() as threads:
        parts = list(threads.map(watch, sanitizer.TOOLS))
    bad = [part.stage for part in parts if part.bad]
    unavailable = all(part.result == "unavailable" for part in parts)
    result = "failed" if bad else "unavailable" if unavailable else "passed"
    return [Outcome("sanitize", result, ", ".join(bad)), *parts]


def bench(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """`pyops bench` of each operator, a program each: what waits for its kernel is one of them."""
    whole = programs.OUT / "bench.json"
    whole.unlink(missing_ok=True)
    end, codes, documents, lost = time.monotonic() + seconds, [], [], []
    names = args.only or list(OPERATORS)
    for i, name in enumerate(names):
        share = max(programs.GRACE, (end - time.monotonic()) / (len(names) - i))
        results = programs.OUT / f"bench-{name}.json"
        codes.append(bench_operator(name, share, results))
        if results.exists():
            documents.append(json.loads(results.read_text()))
        else:
            lost += [f"{name}: {line}" for line in last_lines(f"bench-{name}.log")]
    result = result_of(next((code for code in codes if code != 0), 0))
    if not documents:
        return [Outcome("bench", result, "no results: bench-*.log", 0, lost)]
    document = joined(documents)
    whole.write_text(json.dumps(document))
    summary, problems, parts = read_bench(document)
    return [Outcome("bench", result, summary, 0, lost + problems), *parts]


def bench_operator(name: str, seconds: float, results: Path) -> int | None:
    """Its exit code; it begins no case that would take it beyond its time."""
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pyops", "bench", name, "--device", "cuda",
        "--minutes", f"{max(programs.GRACE, seconds - programs.GRACE) / 60:.2f}",
        "--json", str(results),
    ]  # fmt: skip
    return run(command, f"bench-{name}.log", seconds + 2 * programs.GRACE)


def joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document of several of the same machine."""
    results = [result for document in documents for result in document["results"]]
    left = sum(document.get("not timed", 0) for document in documents)
    return documents[0] | {"results": results, "not timed": left}


def read_bench(document: dict[str, Any]) -> tuple[str, list[str], list[Outcome]]:
    """How many cases were timed, what is wrong with the others, and each operator's ratios."""
    results = document["results"]
    timed = [r for r in results if r["ratio"] is not None]
    problems = [
        f"{r['op']} {r['shape']} {r['dtype']} {r['direction']} {r['layout']}: {r['failure']}"
        for r in results
        if r["failure"]
    ]
    parts = []
    for op in dict.fromkeys(r["op"] for r in timed):
        own = sorted((r for r in timed if r["op"] == op), key=lambda r: r["ratio"])
        least, middle = own[0], own[len(own) // 2]["ratio"]
        where = f"{least['shape']}, {least['dtype']}, {least['direction']}, {least['layout']}"
        words = f"median {middle:.2f} of {len(own)}, least {least['ratio']:.2f} at {where}"
        parts.append(Outcome(op, "passed", words))
    slower = sum(r["ratio"] < 1 for r in timed)
    skipped = document.get("not timed", 0)
    summary = f"{len(timed)} timed, {slower} slower than native"
    return summary + (f", {skipped} cases not reached" if skipped else ""), problems, parts


STAGES: dict[str, Callable[[argparse.Namespace, dict[str, Any], float], list[Outcome]]] = {
    "build": build, "test": test, "sanitize": sanitize, "bench": bench,
}  # fmt: skip


def report(outcomes: Sequence[Outcome], gpu: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table and every problem, and bring the JSON of this GPU up to date."""
    for outcome in outcomes:
        for problem in outcome.problems[:30]:
            print(f"{outcome.stage}: {problem}")
        if more := outcome.problems[30:]:
            folder = programs.OUT.relative_to(programs.ROOT)
            print(f"{outcome.stage}: and {len(more)} more, see {folder}")
    colours = {"failed": "red", "out of time": "red", "unavailable": "yellow"}
    show = runpy.run_path(str(programs.ROOT / "pyops" / "cli" / "table.py"))["show"]
    rows = [
        (
            o.stage if o.stage in STAGES else f"· {o.stage}",
            o.result,
            f"{o.seconds:.0f} s" if o.seconds else "",
            o.summary,
        )
        for o in outcomes
    ]
    marks = [colours.get(o.result, "") for o in outcomes]
    show(gpu.get("gpu", "no GPU"), ("stage", "result", "time", ""), rows, marks)
    if "gpu" in gpu:
        print(f"results in {write(outcomes, gpu, args)}")


def write(outcomes: Sequence[Outcome], gpu: dict[str, Any], args: argparse.Namespace) -> Path:
    """What these stages found replaces what their last run had; other stages' findings stay."""
    words = re.findall(r"[a-z0-9]+", f"{gpu['gpu']} {' '.join(args.only)}".lower())
    path = programs.ROOT / "bench" / "results" / f"{'-'.join(words)}.json"
    path.parent.mkdir(exist_ok=True)
    document = json.loads(path.read_text()) if path.exists() else {"stages": {}}
    document["machine"] = {name: fact for name, fact in gpu.items() if name != "problem"}
    date, stage = datetime.now().isoformat(timespec="seconds"), ""
    for outcome in outcomes:
        if outcome.stage in STAGES:
            stage = outcome.stage
            document["stages"][stage] = {"date": date, **asdict(outcome), "parts": []}
        else:
            document["stages"][stage]["parts"].append(asdict(outcome))
    timed = programs.OUT / "bench.json"
    if "bench" in args.stage and timed.exists():
        document |= json.loads(timed.read_text())
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path.relative_to(programs.ROOT)


if __name__ == "__main__":
    sys.exit(main())
