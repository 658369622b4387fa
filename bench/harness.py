"""Time an op against the best native way to do the same job, honestly.

A result is checked before it is timed. Ours and every peer take turns (A B C A B C …) in one
process, so that a drifting machine drifts for all; the ratio is the median over the rounds. Beside
it stands the share of the physical limit, and a figure above the limit is an error, not a triumph.
"""

from __future__ import annotations

import gc
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import pyops
from pyops.certificate import Function, Inputs, Op, Shape, kernels, random_like, verify
from pyops.numerics import Verdict, settle

from .peaks import Peaks, measure, time_calls

DIRECTIONS = ("forward", "forward+backward")
PEERS = ("eager", "channels_last", "inductor")
"""The native ways to do the job; any other name is taken as a torch.compile backend."""

LIMIT_SLACK = 1.05
"""A rate may exceed the measured limit by this factor: both carry a few percent of noise."""


@dataclass(frozen=True)
class Bench:
    """An op, the shapes to time it on, and the arithmetic that each needs."""

    op: Op
    shapes: Mapping[str, Shape]
    """Named by the network they come from."""
    flops: Callable[[Shape], float]
    """Operations of the forward pass."""
    backward: float = 2.0
    """Operations of the backward pass, in units of the forward's."""
    peers: Sequence[str] = PEERS
    kinks: bool = False
    """True for whole models with ReLUs or max poolings: see `numerics.compare`."""


@dataclass(frozen=True)
class Settings:
    """How to run: the command line's options."""

    dtypes: Sequence[str] = ("float32", "bfloat16")
    device: str = "cpu"
    peers: Sequence[str] | None = None
    """None for each benchmark's own."""
    rounds: int = 11
    seconds: float = 0.02
    """Least time of one sample."""


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
        return (
            f"PYOPS_ISA={self.isa} pyops bench {self.op} --only '^{self.shape}$' "
            f"--dtype {self.dtype}"
        )


@dataclass
class Case:
    """One op, shape and dtype, ready to be timed."""

    bench: Bench
    shape: str
    dtype: torch.dtype
    settings: Settings
    peaks: Peaks

    def results(self) -> Iterator[Result]:
        """Check, then time forward and forward+backward in each layout of ours."""
        op, sizes = self.bench.op, self.bench.shapes[self.shape]
        contiguous = op.inputs(sizes, self.dtype, self.settings.device)
        layouts = {"contiguous": contiguous}
        if "channels_last" in self._peers() and _has_images(contiguous):
            layouts["channels_last"] = contiguous.map(_channels_last)
        wrong = {layout: self._wrong(inputs) for layout, inputs in layouts.items()}
        for direction in DIRECTIONS:
            ready = {layout: i for layout, i in layouts.items() if not wrong[layout]}
            for layout in wrong.keys() - ready.keys():
                yield self._result(direction, layout, "", failure=f"wrong: {wrong[layout]}")
            if ready:
                yield from self._timed(direction, contiguous, ready)

    def _peers(self) -> Sequence[str]:
        return self.bench.peers if self.settings.peers is None else self.settings.peers

    def _wrong(self, inputs: Inputs) -> str:
        """What the error rule holds against ours, or ""."""
        op, shape = self.bench.op, self.bench.shapes[self.shape]
        try:
            draw = partial(op.inputs, shape, self.dtype, self.settings.device)
            lay_out = _layout_like(inputs)

            def verdicts_of(i: int) -> dict[str, Verdict]:
                drawn = draw(draw=i).map(lay_out) if i else inputs
                return verify(op, drawn, shape, kinks=self.bench.kinks)

            verdicts = settle(verdicts_of)
            if op.kinked:
                exact = verify(op, draw(lattice=True).map(lay_out), shape)
                verdicts |= {name: v for name, v in exact.items() if name.startswith("grad_")}
        except Exception as error:  # Whatever an op raises is a failure of that case alone.
            return _first_line(error)
        return "; ".join(f"{name}: {v.reason}" for name, v in verdicts.items() if v.reason)

    def _timed(
        self, direction: str, contiguous: Inputs, layouts: Mapping[str, Inputs]
    ) -> Iterator[Result]:
        op = self.bench.op
        jobs = {f"ours {layout}": job(op, op.ours, i, direction) for layout, i in layouts.items()}
        natives, skipped = self._natives(direction, contiguous)
        samples = interleave(
            jobs | natives, self.settings.rounds, self.settings.seconds, self.settings.device
        )
        median = {name: statistics.median(times) for name, times in samples.items()}
        best = min(natives, key=median.__getitem__)
        for layout, inputs in layouts.items():
            ours = samples[f"ours {layout}"]
            ratios = [n / o for n, o in zip(samples[best], ours, strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            seconds = median[f"ours {layout}"]
            yield self._result(
                direction,
                layout,
                "/".join("+".join(kernels(op, inputs)[d]) for d in direction.split("+")),
                ms=1e3 * seconds,
                native=best,
                native_ms=1e3 * median[best],
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                peers_ms={name: 1e3 * median[name] for name in natives},
                skipped=skipped,
                **self._limits(direction, inputs, seconds),
            )

    def _natives(
        self, direction: str, inputs: Inputs
    ) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
        """The peers that run here, and why the others do not."""
        op = self.bench.op
        jobs: dict[str, Callable[[], object]] = {"eager": job(op, op.native, inputs, direction)}
        skipped = {}
        for peer in self._peers():
            if peer == "eager":
                continue
            if peer == "channels_last":
                if _has_images(inputs):
                    jobs[peer] = job(op, op.native, inputs.map(_channels_last), direction)
                continue
            try:
                peer_job = job(op, _compiled(op, inputs, peer), inputs, direction, direct=True)
                peer_job()
                jobs[peer] = peer_job
            except Exception as error:  # No compiler, no such backend, an unsupported op …
                skipped[peer] = _first_line(error)
        return jobs, skipped

    def _limits(self, direction: str, inputs: Inputs, seconds: float) -> dict[str, object]:
        """How close to the machine's limit `seconds` is; a failure when it is beyond."""
        flops = self.bench.flops(self.bench.shapes[self.shape])
        flops *= 1 + self.bench.backward * (direction != "forward")
        moved, working_set = _bytes(self.bench.op, inputs, direction)
        least = self.peaks.seconds(self.dtype, flops, moved, working_set)
        if self._beyond(least, seconds):
            self.peaks.raise_to(measure(self.settings.device))
            least = self.peaks.seconds(self.dtype, flops, moved, working_set)
        by = max(least, key=least.__getitem__, default="")
        return {
            "limit": least[by] / seconds if by else math.nan,
            "limited_by": by,
            "gflops": flops / seconds / 1e9,
            "intensity": flops / moved,
            "failure": self._beyond(least, seconds),
        }

    def _beyond(self, least: Mapping[str, float], seconds: float) -> str:
        for limit, floor in least.items():
            # A matmul is no bound: a better kernel may pass it.
            bound = self.peaks.exact or limit == "memory"
            if bound and floor > LIMIT_SLACK * seconds:
                return f"above the {limit} limit: {seconds:.2e} s where {floor:.2e} s is the least"
        return ""

    def _result(self, direction: str, layout: str, where: str, **rest: object) -> Result:
        dtype = str(self.dtype).removeprefix("torch.")
        head = (self.bench.op.name, self.shape, dtype, direction, layout, where, pyops.isa())
        return Result(*head, **rest)  # type: ignore[arg-type]


def job(
    op: Op, function: Function, inputs: Inputs, direction: str, *, direct: bool = False
) -> Callable[[], object]:
    """One call without arguments. direct: `function` takes the tensors alone, as compiled ones."""

    def outputs() -> tuple[Tensor, ...]:
        return function(*inputs.tensors.values()) if direct else op.run(function, inputs)

    if direction == "forward":
        return torch.no_grad()(outputs)
    wanted = tuple(t for t in inputs.tensors.values() if t.requires_grad)
    with torch.no_grad():
        images = _is_channels_last(inputs)
        grad_outputs = tuple(_channels_last(g) if images else g for g in random_like(outputs()))
    return lambda: torch.autograd.grad(outputs(), wanted, grad_outputs)


def interleave(
    jobs: Mapping[str, Callable[[], object]], rounds: int, seconds: float, device: str
) -> dict[str, list[float]]:
    """Seconds per call of each job in each round; every round starts with another job."""
    calls = {}
    for name, run in jobs.items():
        run()
        calls[name] = max(1, math.ceil(seconds / time_calls(run, 1, device)))
    names = list(jobs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                elapsed = time_calls(jobs[name], calls[name], device)
                samples[name].append(elapsed / calls[name])
    finally:
        gc.enable()
    return samples


def _compiled(op: Op, inputs: Inputs, backend: str) -> Function:
    torch.compiler.reset()  # Each case compiles for its own shape, without a recompile limit.
    names, options = tuple(inputs.tensors), inputs.options

    def native(*tensors: Tensor) -> tuple[Tensor, ...]:
        return op.run(op.native, Inputs(dict(zip(names, tensors, strict=True)), options))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(native, backend=backend, dynamic=False)


def _bytes(op: Op, inputs: Inputs, direction: str) -> tuple[int, int]:
    """Bytes that must move, and that are in use at a time.

    In each direction every input is read and every output written once. Backward may find in a
    cache what forward left there, so the inputs and outputs of one direction are the working set.
    """
    with torch.no_grad():
        written = sum(t.nbytes for t in op.run(op.ours, inputs))
    read = sum(t.nbytes for t in inputs.tensors.values())
    # Backward reads the inputs and the outputs' gradients, and writes the inputs' gradients.
    both = read + written
    return both + (both + read if direction != "forward" else 0), both


def _has_images(inputs: Inputs) -> bool:
    return "input" in inputs.tensors and inputs.tensors["input"].dim() == 4


def _is_channels_last(inputs: Inputs) -> bool:
    x = inputs.tensors.get("input")
    return (
        x is not None
        and x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def _layout_like(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    return _channels_last if _is_channels_last(inputs) else lambda t: t


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
