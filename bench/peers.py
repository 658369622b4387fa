"""The native ways to do a job, the best of which ours has to beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyops.certificate import Function, Inputs, Op, random_like
from pyops.cli import first_line

from .runtimes import RUNTIMES, runtime_call

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Native's kernels for attention; which one it takes by itself differs between versions."""

PEERS = ("eager", "channels_last", "flattened", *SDPA, *RUNTIMES)
"""Those that are no backend of torch.compile."""

REPEATS = 20
"""Calls in one CUDA graph, so that launching the graph is a small part of it."""


@dataclass(frozen=True)
class Job:
    """One call without arguments, and how often it does the work."""

    call: Callable[[], object]
    times: int = 1
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What must hold around the calls, entered before the clock starts."""

    def run(self) -> None:
        """Once, untimed."""
        with self.setting():
            self.call()


def job(op: Op, function: Function, inputs: Inputs, direction: str, *, direct: bool = False) -> Job:
    """`function` on `inputs`. direct: it takes the tensors alone, as compiled ones."""

    def outputs() -> tuple[Tensor, ...]:
        return function(*inputs.tensors.values()) if direct else op.run(function, inputs)

    if direction == "forward":
        return Job(torch.no_grad()(outputs))
    wanted = tuple(t for t in inputs.tensors.values() if t.requires_grad)
    with torch.no_grad():
        images = is_channels_last(inputs)
        grad_outputs = tuple(channels_last(g) if images else g for g in random_like(outputs()))
    return Job(lambda: torch.autograd.grad(outputs(), wanted, grad_outputs))


def natives(
    op: Op, inputs: Inputs, direction: str, peers: Sequence[str]
) -> tuple[dict[str, Job], dict[str, str]]:
    """The peers that run here, "eager" always among them, and why the others do not."""
    jobs, skipped = {"eager": job(op, op.native, inputs, direction)}, {}
    for peer in peers:
        if not _suits(peer, op, inputs, direction):
            continue
        try:
            made = jobs[peer] if peer in jobs else _native(peer, op, inputs, direction)
            made.run()
            jobs[peer] = made
        except Exception as error:  # No compiler, no such backend, an unsupported op …
            skipped[peer] = first_line(error)
    return jobs, skipped


def _native(peer: str, op: Op, inputs: Inputs, direction: str) -> Job:
    if peer == "channels_last":
        return job(op, op.native, inputs.map(channels_last), direction)
    if peer == "flattened":
        return job(op, op.native, _flattened(op, inputs), direction)
    if peer in SDPA:
        forced = job(op, op.native, inputs, direction)
        return Job(forced.call, setting=partial(sdpa_kernel, SDPA[peer]))
    if peer in RUNTIMES:
        return Job(runtime_call(peer, op, inputs))
    return job(op, _compiled(op, inputs, peer), inputs, direction, direct=True)


def _suits(peer: str, op: Op, inputs: Inputs, direction: str) -> bool:
    if peer in RUNTIMES:
        return direction == "forward" and not any(t.is_cuda for t in inputs.tensors.values())
    if peer == "flattened":
        return op.name in ("lstm", "gru") and inputs.tensors["input"].is_cuda
    return peer != "channels_last" or has_images(inputs)


def _flattened(op: Op, inputs: Inputs) -> Inputs:
    """Recurrent weights in one piece of memory, as `torch.nn.LSTM.flatten_parameters` has them."""
    flat = inputs.map(Tensor.clone)
    weights = [t for name, t in flat.tensors.items() if name.startswith(("w_", "b_"))]
    mode = torch.backends.cudnn.rnn.get_cudnn_mode(op.name.upper())  # type: ignore[no-untyped-call]
    form, hidden = inputs.options, flat.tensors["w_hh_l0"].size(1)
    with torch.no_grad():
        torch._cudnn_rnn_flatten_weight(
            weights, 4, weights[0].size(1), mode, hidden, 0, form["layers"],
            form.get("batch_first", False), form["bidirectional"],
        )  # fmt: skip
    return flat


def captured(job: Job) -> Job:
    """The work of a job, REPEATS times in one CUDA graph: what it takes without the host."""
    with job.setting():
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                job.call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                job.call()
    return Job(graph.replay, REPEATS)


def captured_all(jobs: Mapping[str, Job]) -> tuple[dict[str, Job], dict[str, str]]:
    """Those that can be captured, and why the others cannot."""
    graphs, failed = {}, {}
    for name, made in jobs.items():
        try:
            graphs[name] = captured(made)
        except Exception as error:  # Whatever a capture does not allow.
            failed[name] = first_line(error)
    return graphs, failed


def _compiled(op: Op, inputs: Inputs, backend: str) -> Function:
    torch.compiler.reset()  # Each case compiles for its own shape, without a recompile limit.
    names, options = tuple(inputs.tensors), inputs.options

    def native(*tensors: Tensor) -> tuple[Tensor, ...]:
        return op.run(op.native, Inputs(dict(zip(names, tensors, strict=True)), options))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(native, backend=backend, dynamic=False)


def has_images(inputs: Inputs) -> bool:
    """True where the input has the dimensions of a batch of images."""
    return "input" in inputs.tensors and inputs.tensors["input"].dim() == 4


def is_channels_last(inputs: Inputs) -> bool:
    """True where images lie so and not in planes."""
    x = inputs.tensors.get("input")
    return (
        x is not None
        and x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def channels_last(t: Tensor) -> Tensor:
    """The same values in that layout, where there are images."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
