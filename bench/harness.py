"""Time an op against the best native way to do the same job, honestly.

A result is checked before it is timed. Ours and every peer take turns (A B C A B C …) in one
process, so that a drifting machine drifts for all; the ratio is the median over the rounds. Beside
it stands the share of the physical limit, and a figure above the limit is an error, not a triumph.
On a GPU, what is small enough to wait for the host is timed in CUDA graphs too, native's as ours.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

import pyops
from pyops import _C
from pyops.certificate import (
    Inputs,
    Op,
    Reference,
    Shape,
    float32_precision,
    kernels,
    reference_of,
    verify,
)
from pyops.cli import first_line
from pyops.cli.info import architectures_of
from pyops.numerics import Verdict, settle

from .clocks import Clock, clock_of
from .peaks import Peaks, matmul_precision, measure
from .peers import (
    Job,
    captured_all,
    channels_last,
    has_images,
    is_channels_last,
    job,
    natives,
)

DIRECTIONS = ("forward", "forward+backward")
PEERS = ("eager", "channels_last", "inductor")
"""The native ways to do the job: `peers` and `runtimes` name more, any other is a torch.compile
backend."""

SMALL = 1e-4
"""Seconds of a call below which the host has a part in it: such calls are timed in graphs too."""

LEAST_ROUNDS = 5
"""Rounds that a median needs, however long they take."""

LIMIT_SLACK = 1.05
"""A rate may exceed the measured limit by this factor: both carry a few percent of noise."""


@dataclass(frozen=True)
class Bench:
    """An op, the shapes to time it on, and the arithmetic that each needs."""

    op: Op
    shapes: Mapping[str, Shape]
    """Named by the network they come from."""
    flops: Callable[[Shape], float]
    """Operations of the forward pass, by the direct algorithm."""
    fewest: Callable[[Shape], float] = lambda _: 1.0
    """The share of them that the least needs: so far may a rate be above the limit."""
    backward: float = 2.0
    """Operations of the backward pass, in units of the forward's."""
    more: Mapping[str, Shape] = field(default_factory=dict)
    """The rest of the grid, for a full run on a CPU."""
    peers: Sequence[str] = PEERS
    kinks: bool = False
    """True for whole models with ReLUs or max poolings: see `numerics.compare`."""
    gpu_shapes: Mapping[str, Shape] | None = None
    """Larger ones, that fill a GPU; None for the same."""
    gpu_peers: Sequence[str] | None = None
    """The native ways to do it on a GPU; None for the same."""

    def shapes_on(self, device: str, *, full: bool = True) -> Mapping[str, Shape]:
        """The shapes to time on a device, the typical ones first; full: the rest too."""
        if device.startswith("cuda"):
            return self.gpu_shapes or self.shapes
        return {**self.shapes, **self.more} if full else self.shapes

    def peers_on(self, device: str) -> Sequence[str]:
        """The peers to time on a device."""
        return self.gpu_peers or self.peers if device.startswith("cuda") else self.peers


@dataclass(frozen=True)
class Settings:
    """How to run: the command line's options."""

    dtypes: Sequence[str] = ("float32", "bfloat16")
    device: str = "cpu"
    peers: Sequence[str] | None = None
    """None for each benchmark's own."""
    rounds: int = 11
    seconds: float = 0.01
    """Least time of one sample."""
    budget: float = 1.0
    """Seconds after which no round begins beyond the least number."""
    cold: bool = False
    """True to empty a GPU's cache before each call."""


@dataclass(frozen=True)
class Result:
    """One line of the table; times in milliseconds per call."""

    op: str
    shape: str
    dtype: str
    direction: str
    layout: str
    kernels: str
    isa: str
    """The CPU's instruction set in use, or the GPU's architecture."""
    sizes: Shape = field(default_factory=dict)
    """The shape itself."""
    failure: str = ""
    """Why there is no figure, or why it must not be believed; empty when all is well."""
    ms: float = math.nan
    native: str = ""
    """The fastest peer."""
    native_ms: float = math.nan
    ratio: float = math.nan
    """Median over the rounds of native's time by ours: above 1 we are faster."""
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    """The quartiles of the ratio."""
    limit: float = math.nan
    """Share of the physical limit reached."""
    limited_by: str = ""
    gflops: float = math.nan
    intensity: float = math.nan
    """Operations per byte that must move."""
    peers_ms: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Peers that could not run, with the reason."""

    @property
    def reproduction(self) -> str:
        """The command that runs this case alone."""
        device = " --device cuda" if self.isa.startswith("sm_") else ""
        case = f"--full --only '^{self.op}/{self.shape}$' --dtype {self.dtype}"
        return f"PYOPS_ISA={self.isa} pyops bench {case}{device}"


@dataclass
class Case:
    """One op, shape and dtype, ready to be timed."""

    bench: Bench
    shape: str
    dtype: torch.dtype
    settings: Settings
    peaks: Peaks
    precision: str = "highest"
    """Of float32, as `torch.set_float32_matmul_precision` takes it."""

    def results(self) -> Iterator[Result]:
        """Check, then time forward and forward+backward in each layout of ours."""
        try:
            with matmul_precision(self.precision):
                yield from self._results()
        except Exception as error:  # Out of memory, say: the other cases still count.
            yield self._result("any", "any", "", failure=first_line(error))

    def _results(self) -> Iterator[Result]:
        op, sizes = self.bench.op, self.sizes
        contiguous = op.inputs(sizes, self.dtype, self.settings.device)
        layouts = {"contiguous": contiguous}
        if "channels_last" in self._peers() and has_images(contiguous):
            layouts["channels_last"] = contiguous.map(channels_last)
        # The layouts hold the same values and share a reference, two where there are kinks.
        drawn = lru_cache(maxsize=2)(self._drawn)
        wrong = {layout: self._wrong(inputs, drawn) for layout, inputs in layouts.items()}
        for direction in DIRECTIONS:
            ready = {layout: i for layout, i in layouts.items() if not wrong[layout]}
            for layout in wrong.keys() - ready.keys():
                yield self._result(direction, layout, "", failure=f"wrong: {wrong[layout]}")
            if ready:
                yield from self._timed(direction, contiguous, ready)

    @property
    def sizes(self) -> Shape:
        """The shape itself."""
        return self.bench.shapes_on(self.settings.device)[self.shape]

    @property
    def kind(self) -> str:
        """The dtype, and float32's precision where that is not the highest."""
        name = str(self.dtype).removeprefix("torch.")
        return name if self.precision == "highest" else f"{name}-{self.precision}"

    def _peers(self) -> Sequence[str]:
        own = self.bench.peers_on(self.settings.device)
        return own if self.settings.peers is None else self.settings.peers

    def _drawn(self, draw: int, lattice: bool) -> tuple[Inputs, Reference]:
        """A draw of the inputs, and what to hold its results against."""
        op, device = self.bench.op, self.settings.device
        inputs = op.inputs(self.sizes, self.dtype, device, draw=draw, lattice=lattice)
        if op.kinked and not lattice:  # Its gradients prove something on the lattice alone.
            for t in inputs.tensors.values():
                t.requires_grad_(False)
        return inputs, reference_of(op, inputs)

    def _wrong(self, inputs: Inputs, drawn: Callable[[int, bool], tuple[Inputs, Reference]]) -> str:
        """What the error rule holds against ours in the layout of `inputs`, or ""."""
        op, lay_out = self.bench.op, _layout_like(inputs)

        def verdicts_of(i: int, lattice: bool = False) -> dict[str, Verdict]:
            values, reference = drawn(i, lattice)
            kinks = self.bench.kinks and not lattice
            return verify(op, values.map(lay_out), self.sizes, kinks=kinks, reference=reference)

        try:
            verdicts = settle(verdicts_of)
            if op.kinked:
                exact = verdicts_of(0, lattice=True)
                verdicts |= {name: v for name, v in exact.items() if name.startswith("grad_")}
        except Exception as error:  # Whatever an op raises is a failure of that case alone.
            return first_line(error)
        return "; ".join(f"{name}: {v.reason}" for name, v in verdicts.items() if v.reason)

    def _timed(
        self, direction: str, contiguous: Inputs, layouts: Mapping[str, Inputs]
    ) -> Iterator[Result]:
        op = self.bench.op
        ours = {layout: job(op, op.ours, i, direction) for layout, i in layouts.items()}
        peers, skipped = natives(op, contiguous, direction, self._peers())
        found = list(self._compared(direction, layouts, ours, peers, skipped))
        yield from found
        if self._has_graphs() and min(result.ms for result in found) < 1e3 * SMALL:
            ours, failed = captured_all(ours)
            for layout, reason in failed.items():
                yield self._result(direction, f"{layout}, graph", "", failure=f"graph: {reason}")
            peers, without = captured_all(peers)
            if ours and peers:
                ready = {layout: layouts[layout] for layout in ours}
                yield from self._compared(direction, ready, ours, peers, without, ", graph")

    def _has_graphs(self) -> bool:
        return self.settings.device.startswith("cuda") and not self.settings.cold

    def _compared(
        self,
        direction: str,
        layouts: Mapping[str, Inputs],
        ours: Mapping[str, Job],
        peers: Mapping[str, Job],
        skipped: dict[str, str],
        how: str = "",
    ) -> Iterator[Result]:
        """A result for each layout of ours beside the fastest peer; `how` the calls were made."""
        op, settings = self.bench.op, self.settings
        jobs = {f"ours {layout}": made for layout, made in ours.items()} | dict(peers)
        clock = clock_of(settings.device, cold=settings.cold)
        samples = interleave(jobs, settings.rounds, settings.seconds, clock, settings.budget)
        median = {name: statistics.median(times) for name, times in samples.items()}
        best = min(peers, key=median.__getitem__)
        for layout, inputs in layouts.items():
            own = samples[f"ours {layout}"]
            ratios = [n / o for n, o in zip(samples[best], own, strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            seconds = median[f"ours {layout}"]
            yield self._result(
                direction,
                layout + how,
                "/".join("+".join(kernels(op, inputs)[d]) for d in direction.split("+")),
                ms=1e3 * seconds,
                native=best,
                native_ms=1e3 * median[best],
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                peers_ms={name: 1e3 * median[name] for name in peers},
                skipped=skipped,
                **self._limits(direction, inputs, seconds),
            )

    def _limits(self, direction: str, inputs: Inputs, seconds: float) -> dict[str, object]:
        """How close to the machine's limit `seconds` is; a failure when it is beyond."""
        flops = self.bench.flops(self.sizes)
        flops *= 1 + self.bench.backward * (direction != "forward")
        read, moved, working_set = _bytes(self.bench.op, inputs, direction)
        cold = read if self.settings.cold else 0
        unit = self._unit()
        least = self.peaks.seconds(unit, flops, moved, working_set, cold)
        if self._beyond(least, seconds):
            self.peaks.raise_to(measure(self.settings.device))
            least = self.peaks.seconds(unit, flops, moved, working_set, cold)
        by = max(least, key=least.__getitem__, default="")
        return {
            "limit": least[by] / seconds if by else math.nan,
            "limited_by": by,
            "gflops": flops / seconds / 1e9,
            "intensity": flops / moved,
            "failure": self._beyond(least, seconds),
        }

    def _unit(self) -> str:
        """What computes: the dtype, or TF32 where PyTorch's switches let float32 be that."""
        precision = float32_precision(self.settings.device, cudnn=self.bench.op.cudnn)
        return "tf32" if (self.dtype, precision) == (torch.float32, "tf32") else self.kind

    def _beyond(self, least: Mapping[str, float], seconds: float) -> str:
        fewest = {"compute": self.bench.fewest(self.sizes)}
        for limit, direct in least.items():
            # A matmul is no bound: a better kernel may pass it.
            bound = self.peaks.exact or limit == "memory"
            floor = direct * fewest.get(limit, 1.0)
            if bound and floor > LIMIT_SLACK * seconds:
                return f"above the {limit} limit: {seconds:.2e} s where {floor:.2e} s is the least"
        return ""

    def _result(self, direction: str, layout: str, where: str, **rest: object) -> Result:
        place = place_of(self.settings.device)
        head = (self.bench.op.name, self.shape, self.kind, direction, layout, where, place)
        return Result(*head, self.sizes, **rest)  # type: ignore[arg-type]


def place_of(device: str) -> str:
    """The CPU's instruction set in use, or the architecture of a GPU whose code it runs."""
    if not device.startswith("cuda"):
        return pyops.isa()
    runs = architectures_of(torch.cuda.get_device_capability(device))
    return next((arch for arch in reversed(runs) if arch <= _C.arch_cap()), "native")


def interleave(
    jobs: Mapping[str, Job], rounds: int, seconds: float, clock: Clock, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each job in each round; every round starts with another job.

    seconds: the least time of one sample. budget: seconds after which LEAST_ROUNDS are enough.
    """

    def timed(made: Job, calls: int) -> float:
        with made.setting():
            return clock.seconds(made.call, calls)

    calls = {}
    for name, made in jobs.items():
        made.run()
        calls[name] = max(1, math.ceil(seconds / max(timed(made, 1), 1e-9)))
    names = list(jobs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        start = time.monotonic()
        for i in range(rounds):
            if i >= LEAST_ROUNDS and time.monotonic() > start + budget:
                break
            for name in names[i % len(names) :] + names[: i % len(names)]:
                elapsed = timed(jobs[name], calls[name])
                samples[name].append(elapsed / (calls[name] * jobs[name].times))
    finally:
        gc.enable()
    return samples


def _bytes(op: Op, inputs: Inputs, direction: str) -> tuple[int, int, int]:
    """Bytes that must be read at first, that must move in all, and that are in use at a time.

    In each direction every input is read and every output written once. Backward may find in a
    cache what forward left there, so the inputs and outputs of one direction are the working set.
    """
    with torch.no_grad():
        written = sum(t.nbytes for t in op.run(op.ours, inputs))
    read = sum(t.nbytes for t in inputs.tensors.values())
    # Backward reads the inputs and the outputs' gradients, and writes the inputs' gradients.
    both = read + written
    return read, both + (both + read if direction != "forward" else 0), both


def _layout_like(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    return channels_last if is_channels_last(inputs) else lambda t: t
