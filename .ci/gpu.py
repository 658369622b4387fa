"""Proof on a GPU in one command: build, test, sanitize and benchmark. `make gpu`, `gpu.py --help`.

Uses the PyTorch of the Python that runs it, and installs beside the build what else is missing. A
stage that fails, or runs out of its share of the time, does not keep the later ones from running;
a finished build is only brought up to date. Ends with one table, one JSON and an exit code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sanitizer

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "gpu"
SITE = OUT / "site"
# What is built and tested with, by the module that shows it is there.
NEEDED = {
    "setuptools": "setuptools", "wheel": "wheel", "cmake": "cmake", "ninja": "ninja",
    "pybind11": "pybind11", "cutlass_library": "nvidia-cutlass", "numpy": "numpy",
    "pytest": "pytest", "xdist": "pytest-xdist", "pytest_timeout": "pytest-timeout",
    "expecttest": "expecttest", "rich": "rich", "tqdm": "tqdm", "pandas": "pandas",
    "matplotlib": "matplotlib", "sklearn": "scikit-learn", "mlxtend": "mlxtend",
}  # fmt: skip
HEADERS = "nvidia-cutlass"  # of which the Python part, with all that it needs, stays away
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
GRACE = 15.0  # seconds in which an interrupted program may still write down what it has
MEMORY_PER_WORKER = 4 << 30  # bytes of the GPU: its context, and the largest common tests
# Few tests at a time, so that the first file's come first. By groups xdist would have no work for
# the workers that replace the ones which died.
DEALING = ("--dist", "load", "--maxschedchunk", "2")
# Seconds of a test, after which its process ends: no exception reaches one that waits for a kernel.
PATIENCE = 90


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages: 0 when all is well, 1 when something failed, 2 when nothing can run."""
    args = _parser().parse_args(argv)
    stages = [name for name in STAGES if name in args.stage]
    gpu = find_gpu()
    if "problem" in gpu and stages != ["build"]:
        print(f"gpu: {gpu['problem']}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    outcomes: list[Outcome] = []
    for i, name in enumerate(stages):
        left = [WEIGHTS[later] for later in stages[i:]]
        seconds = max(GRACE, (end - time.monotonic()) * left[0] / sum(left))
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


def build(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Install what is missing and compile, in place, with the CUDA kernels.

    It compiles whatever could not be installed, which may be a tool of a few tests alone.
    """
    end = time.monotonic() + seconds
    problems = []
    for command in installation(args.wheels):
        if run(command, "install.log", end - time.monotonic()) != 0:
            problems += last_lines("install.log")
    what = "not all was installed" if problems else ""
    setup = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    variables = {"PYOPS_CUDA": "1", "PYOPS_CUDA_ARCHS": own_code(gpu)}
    code = run(setup, "build.log", end - time.monotonic(), **variables)
    result = "failed" if problems and code == 0 else result_of(code)
    return [Outcome("build", result, what, 0, problems + last_lines("build.log") * (code != 0))]


def own_code(gpu: dict[str, Any]) -> str:
    """For which GPU to compile besides sm_80: the one that is here, or what was asked for.

    Its driver would otherwise translate all the PTX of a file when a process first needs it.
    """
    here = gpu.get("capability", "8.0").replace(".", "")
    return os.environ.get("PYOPS_CUDA_ARCHS", "" if here == "80" else f"{here}-real")


def installation(wheels: Path | None) -> list[list[str]]:
    """The commands that install what is missing, beside the build; none if nothing is."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(SITE)]
    if wheels is not None:
        # What is there stays: all that includes its headers would be compiled again.
        files = [str(w) for w in sorted(wheels.resolve().glob("*.whl")) if not _is_unpacked(w)]
        return [[*pip, "--no-index", "--no-deps", *files]] if files else []
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    missing = [name for module, name in NEEDED.items() if not _is_there(module)]
    pinned = [*pip, "-c", str(ROOT / "constraints.txt")]
    whole = [name for name in missing if name != HEADERS]
    commands = [[*pinned, *whole]] if whole else []
    return [*commands, [*pinned, "--no-deps", HEADERS]] if HEADERS in missing else commands


def _is_unpacked(wheel: Path) -> bool:
    name, version = wheel.name.split("-")[:2]
    return (SITE / f"{name}-{version}.dist-info").is_dir()


def _is_there(module: str) -> bool:
    is_program = module in ("cmake", "ninja") and shutil.which(module, path=search_path())
    return bool(is_program) or importlib.util.find_spec(module) is not None


def test(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Every test that needs a GPU, side by side as far as its memory allows."""
    words = [word for op in args.only for word in OPERATORS[op]]
    workers = max(1, min(os.cpu_count() or 1, gpu["memory"] // MEMORY_PER_WORKER))
    results = OUT / "tests.xml"
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-m", "cuda", "-n", str(workers), *DEALING,
        "--max-worker-restart", "100", "--timeout", str(PATIENCE), "--timeout-method", "thread",
        "-o", "junit_family=xunit1", f"--junitxml={results}",
        *(["-k", " or ".join(words)] if words else []),
    ]  # fmt: skip
    code = run(command, "tests.log", seconds)
    if not results.exists():
        return [
            Outcome("test", result_of(code), "no results: tests.log", 0, last_lines("tests.log"))
        ]
    summary, problems = read_tests(results)
    return [Outcome("test", result_of(code), summary, 0, problems)]


def read_tests(results: Path) -> tuple[str, list[str]]:
    """How many tests passed, and every one that did not with its reason."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    problems = []
    for case in xml.parse(results).getroot().iter("testcase"):
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
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "no test", problems


def sanitize(args: argparse.Namespace, gpu: dict[str, Any], seconds: float) -> list[Outcome]:
    """Every kernel once under each of compute-sanitizer's tools, all tools at a time."""
    if shutil.which("compute-sanitizer", path=search_path()) is None:
        return [Outcome("sanitize", "unavailable", "no compute-sanitizer is found")]
    prefixes = [word for op in args.only for word in OPERATORS[op]]
    program = [sys.executable, str(ROOT / "tests" / "kernel_calls.py")]
    program += ["--only", *prefixes] if prefixes else []

    def watch(tool: str) -> Outcome:
        log, start = f"{tool}.log", time.monotonic()
        # Each tensor an allocation of its own: then what lies beyond its end is nobody's.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        code = run(sanitizer.command(tool, program), log, seconds, **alone)
        found = sanitizer.parse((OUT / log).read_text(errors="replace"))
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
    """`pyops bench` of the operators; it begins no case that would take it beyond its time."""
    results = OUT / "bench.json"
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pyops", "bench", *(args.only or OPERATORS), "--device", "cuda",
        "--minutes", f"{max(GRACE, seconds - GRACE) / 60:.2f}", "--json", str(results),
    ]  # fmt: skip
    code = run(command, "bench.log", seconds + 2 * GRACE)
    if not results.exists():
        return [
            Outcome("bench", result_of(code), "no results: bench.log", 0, last_lines("bench.log"))
        ]
    summary, problems, parts = read_bench(json.loads(results.read_text()))
    return [Outcome("bench", result_of(code), summary, 0, problems), *parts]


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
            print(f"{outcome.stage}: and {len(more)} more, see {OUT.relative_to(ROOT)}")
    colours = {"failed": "red", "out of time": "red", "unavailable": "yellow"}
    show = runpy.run_path(str(ROOT / "pyops" / "cli" / "table.py"))["show"]
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
    path = ROOT / "bench" / "results" / f"{'-'.join(words)}.json"
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
    timed = OUT / "bench.json"
    if "bench" in args.stage and timed.exists():
        document |= json.loads(timed.read_text())
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path.relative_to(ROOT)


if __name__ == "__main__":
    sys.exit(main())
