"""The command line of the benchmarks: `pyops bench`, and `python -m bench.bench_<file>`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pkgutil
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch

import pyops
from pyops.cli import UserError
from pyops.cli.arguments import integer
from pyops.cli.files import output_directory, output_file, replace_file, write_json
from pyops.cli.info import ARCHITECTURES, ISAS, machine, usable_device

from . import plots, report
from .against import ROOT, compare_revisions
from .allocator import keep_freed_memory
from .caps import cap_native, native_capability
from .harness import Bench, Case, Result, Settings
from .peaks import Peaks, measure
from .peers import PEERS

RESULTS = Path(__file__).parent / "results"
ALIASES = {"native": ("eager", "channels_last"), "compile": ("inductor",)}
FULL_DTYPES = (*Settings.dtypes, "float32-high")
MINUTES = 6.0
"""Of a run that asks for no more: enough for the typical shapes on two cores."""

QUICK = Settings(peers=("eager", "channels_last"), rounds=5, seconds=0.004)


def files() -> list[str]:
    """The benchmark files of this folder, by the part of their name after `bench_`."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return [m.name.removeprefix("bench_") for m in modules if m.name.startswith("bench_")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops bench`."""
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(files())}")
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    dtypes = ("float64", "float32", "bfloat16", "float16", "float32-high")
    parser.add_argument("--only", metavar="REGEX", help="cases whose op/shape matches")
    parser.add_argument(
        "--dtype", nargs="+", choices=dtypes, metavar="DTYPE",
        help=f"of {', '.join(dtypes)}, the float32 of that matmul precision "
        f"(default: {' '.join(Settings.dtypes)}; with --full {' '.join(FULL_DTYPES)})",
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="the whole grid of shapes, for hours")
    parser.add_argument(
        "--isa", choices=(*ISAS, *ARCHITECTURES), help="cap the instruction set, native's too"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as in cuda (%(default)s)")
    parser.add_argument("--cold", action="store_true", help="empty a GPU's cache before each call")
    parser.add_argument(
        "--minutes", type=float, metavar="M",
        help="begin no case later; every benchmark's first shape comes before any second "
        f"({MINUTES:g}; with --full or --save as long as it takes)",
    )  # fmt: skip
    parser.add_argument("--threads", type=integer(1), metavar="N", help="native's and ours (all)")
    parser.add_argument(
        "--peers", nargs="*", metavar="PEER",
        help="native (eager, channels_last), compile (inductor), onnxruntime, openvino, on a GPU "
        "flash, efficient, cudnn, math, flattened, or any backend of torch.compile",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one shape per op, eager peers only")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the results too")
    parser.add_argument("--png", type=output_file, metavar="FILE", help="a picture of the ratios")
    parser.add_argument("--roofline", type=output_file, metavar="FILE", help="one of the limits")
    parser.add_argument("--save", action="store_true", help="keep results and pictures of them")
    parser.add_argument("--against", metavar="REF", help="compare with another git revision")


def main(benches: Sequence[Bench]) -> None:
    """Run one file's benchmarks as a program."""
    parser = argparse.ArgumentParser()
    _add_options(parser)
    try:
        args = parser.parse_args()
        cap_native(args.isa)
        code = run(args, benches)
    except UserError as error:
        print(error, file=sys.stderr)
        code = 2
    raise SystemExit(code)


def run(args: argparse.Namespace, benches: Sequence[Bench] | None = None) -> int:
    """Time and report; 1 when a kernel is wrong or a figure is above the machine's limit."""
    if (args.save or args.against) and not (ROOT / ".git").exists():
        raise UserError("bench: --save and --against are for a checkout of pyops, here is none")
    if args.against:
        return compare_revisions(args.against)
    if args.minutes is None:
        args.minutes = float("inf") if args.full or args.save else MINUTES
    end = time.monotonic() + 60 * args.minutes
    _prepare(args)
    kept = keep_freed_memory()
    peaks = measure(args.device)
    cases = _cases(collect(args.files) if benches is None else benches, args, peaks)
    with pyops.isa_cap(args.isa) if args.isa else contextlib.nullcontext():
        results: list[Result] = []
        try:
            left = _time(cases, end, results)
        except KeyboardInterrupt:  # nothing is written, as not all of it is there
            report.print_report(results)
            raise
        ops = list(dict.fromkeys(case.bench.op.name for case in cases))
        results.sort(key=lambda r: ops.index(r.op))
        facts = {
            **machine(),
            "date": date.today().isoformat(),
            "native's instruction set": native_capability(),
            "caches before a call": _caches(args),
            "freed memory": "kept by the process" if kept else "as the allocator has it",
        }
    report.print_report(results)
    if left:
        print(f"{left} of {len(cases)} cases were not begun within {args.minutes:g} minutes")
    _write(args, results, peaks, facts, left)
    return 1 if any(r.failure for r in results) else 0


def _prepare(args: argparse.Namespace) -> None:
    """Set threads and device, and native to its best; UserError for what would end in vain."""
    if args.save:
        output_directory(RESULTS)
    if args.save or args.png or args.roofline:
        importlib.import_module("matplotlib")
    if args.threads:
        torch.set_num_threads(args.threads)
    gpu = args.device.startswith("cuda")
    if args.cold and not gpu:
        raise UserError("bench: --cold is for GPUs, a CPU's caches cannot be emptied")
    usable_device(args.device)
    if gpu:
        torch.cuda.set_device(args.device)
        torch.backends.cudnn.benchmark = True


def _caches(args: argparse.Namespace) -> str:
    return (
        "cold: a buffer of twice the L2 cache is written" if args.cold else "warm: the same inputs"
    )


def collect(names: Sequence[str]) -> list[Bench]:
    """The benchmarks of the named files, of all when none is named."""
    for name in names:
        if name not in files():
            raise UserError(f"bench: file must be one of {', '.join(files())}, got {name!r}")
    package = __name__.rpartition(".")[0]
    modules = [importlib.import_module(f"{package}.bench_{name}") for name in names or files()]
    return [bench for module in modules for bench in module.BENCHES]


def _cases(benches: Sequence[Bench], args: argparse.Namespace, peaks: Peaks) -> list[Case]:
    """The cases that the options ask for, in order; UserError when there is none."""
    base = QUICK if args.quick else Settings()
    peers = base.peers if args.peers is None else _peers(args.peers)
    dtypes = args.dtype or (FULL_DTYPES if args.full else base.dtypes)
    settings = replace(base, dtypes=dtypes, device=args.device, peers=peers, cold=args.cold)
    try:
        only = re.compile(args.only or "")
    except re.error as error:
        raise UserError(f"bench: --only {args.only!r} is no regular expression: {error}") from None
    ranked = []
    for bench in benches:
        shapes = bench.shapes_on(args.device, full=args.full)
        named = [name for name in shapes if only.search(f"{bench.op.name}/{name}")]
        for rank, name in enumerate(named[:1] if args.quick else named):
            for kind in settings.dtypes:
                dtype, _, precision = kind.partition("-")
                # Without arithmetic there is nothing to do in another precision.
                if not precision or bench.flops(shapes[name]):
                    how = (settings, peaks, precision or "highest")
                    ranked.append((rank, Case(bench, name, getattr(torch, dtype), *how)))
    if not ranked:
        raise UserError(f"bench: no case matches --only {args.only!r}; --full has more")
    if args.minutes < float("inf"):
        ranked.sort(key=lambda entry: entry[0])
    return [case for _, case in ranked]


def _peers(names: Sequence[str]) -> tuple[str, ...]:
    """The peers meant, each once; a comma may stand between them too."""
    each = [name for entry in names for name in entry.split(",")]
    known = dict.fromkeys((*ALIASES, *PEERS, *torch.compiler.list_backends(exclude_tags=())))
    for name in each:
        if name not in known:
            raise UserError(f"bench: peer must be one of {', '.join(known)}, got {name!r}")
    return tuple(dict.fromkeys(peer for name in each for peer in ALIASES.get(name, (name,))))


def _time(cases: Sequence[Case], end: float, results: list[Result]) -> int:
    """Append the results; how many cases were not begun before `end`."""
    for i, case in enumerate(cases):
        if time.monotonic() > end:
            return len(cases) - i
        for result in case.results():
            results.append(result)
            # A long run shows its progress apart from the report.
            print("  ".join(report.row(result)), file=sys.stderr, flush=True)
    return 0


def _write(
    args: argparse.Namespace,
    results: Sequence[Result],
    peaks: Peaks,
    facts: dict[str, str],
    left: int,
) -> None:
    json_file, png_file, roofline_file = args.json, args.png, args.roofline
    if args.save:
        name = _file_name(args, facts)
        text = report.markdown(results, peaks, facts)
        replace_file(RESULTS / f"{name}.md", lambda file: file.write_text(text))
        json_file = json_file or RESULTS / f"{name}.json"
        png_file = png_file or RESULTS / f"{name}.png"
        roofline_file = roofline_file or RESULTS / f"{name}-roofline.png"
    if json_file:
        write_json(json_file, report.document(results, peaks, facts) | {"not timed": left})
    caption = report.caption(results, facts)
    if png_file:
        replace_file(png_file, partial(plots.draw_ratios, results, caption))
    if roofline_file:
        replace_file(roofline_file, partial(plots.draw_rooflines, results, peaks, caption))
    for path in filter(None, (json_file, png_file, roofline_file)):
        print(f"written: {path}")


def _file_name(args: argparse.Namespace, facts: dict[str, str]) -> str:
    if args.device.startswith("cuda"):
        return "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(args.device).lower()))
    words = re.findall(r"[a-z0-9]+", facts["processor"].lower())
    return "-".join([*dict.fromkeys(words), pyops.isa(), facts["threads"], "threads"])
