"""An op beside its native composite, and the verdict on its outputs and every gradient."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import pyops

from .numerics import MAX_ZEROS, MOSTLY_ZEROS, Verdict, compare

Shape = Mapping[str, Any]
Function = Callable[..., Any]
Outputs = tuple[Tensor, ...]


@dataclass
class Inputs:
    """The arguments of one call: differentiable tensors by name, then everything else."""

    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call on changed, detached tensors, asking for gradients as before."""
        tensors = {
            name: change(t.detach()).requires_grad_(t.requires_grad)
            for name, t in self.tensors.items()
        }
        return Inputs(tensors, self.options)


@dataclass(frozen=True)
class Op:
    """An op of pyops beside its native composite; both take the same arguments."""

    name: str
    ours: Function
    native: Function
    draw: Callable[..., Inputs]
    """`draw(random, **shape)` gives float64 inputs; `random(*size)` is standard normal."""
    shapes: Mapping[str, Shape]
    """Small odd shapes, the first one the smallest: gradcheck runs on that."""
    call: Callable[..., Any] = lambda function, tensors, options: function(
        *tensors.values(), **options
    )
    terms: Callable[[Shape], int] = lambda shape: 1
    """Length of the longest sum behind one output, for the float32 noise of recurrences."""
    selects: bool = False
    """True where outputs are selected inputs: exact forward, gradients mostly zeros."""
    kinked: bool = False
    """True where a ReLU or max decides on computed values: at size, some decision hangs on the
    last bit, and gradients compare only on a lattice."""
    cudnn: bool = False
    """True where on a GPU cuDNN's switch says whether float32 is TF32, not that of products."""

    def inputs(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: str = "cpu",
        *,
        lattice: bool = False,
        draw: int = 0,
    ) -> Inputs:
        """Random inputs, for the same op, shape, `draw` and kind of device the same in every run.

        lattice: small integers times powers of two, whose sums float32 holds exactly.
        """
        seed = zlib.crc32(f"{self.name} {sorted(shape.items())}".encode())
        generator = torch.Generator(device).manual_seed(seed + draw)

        def random(*size: int) -> Tensor:
            # Drawn in float32: fast, and every dtype then starts from the same numbers.
            values = torch.randn(*size, generator=generator, device=device).double()
            return values.round().clamp(-2, 2) if lattice else values

        drawn = self.draw(random, **shape)
        for name, t in drawn.tensors.items():
            drawn.tensors[name] = t.to(device, dtype).requires_grad_(dtype.is_floating_point)
        return drawn

    def run(self, function: Function, inputs: Inputs) -> Outputs:
        """The outputs of `function` (`ours` or `native`) as a flat tuple."""
        return _flat(self.call(function, inputs.tensors, inputs.options))


def outputs_and_gradients(
    op: Op, function: Function, inputs: Inputs, grad_outputs: Outputs | None = None
) -> dict[str, Tensor]:
    """Outputs as `output0` …, gradients as `grad_<tensor>` for the inputs that ask for one."""
    outputs = op.run(function, inputs)
    results = {f"output{i}": output for i, output in enumerate(outputs)}
    wanted = {name: t for name, t in inputs.tensors.items() if t.requires_grad}
    if wanted and grad_outputs is not None:
        gradients = torch.autograd.grad(outputs, tuple(wanted.values()), grad_outputs)
        results |= {f"grad_{name}": g for name, g in zip(wanted, gradients, strict=True)}
    return {name: result.detach() for name, result in results.items()}


def random_like(outputs: Outputs) -> Outputs:
    """The gradients a backward pass starts from: standard normal, seeded."""
    device = outputs[0].device
    generator = torch.Generator(device).manual_seed(0)
    return tuple(
        torch.randn(o.shape, generator=generator, device=device).to(o.dtype) for o in outputs
    )


def float32_precision(device: str, *, cudnn: bool) -> str:
    """Of float32 products there, as PyTorch's switches have it; see `Op` and `numerics.allowed`."""
    precision = torch.get_float32_matmul_precision()
    if not device.startswith("cuda"):
        return precision
    rounds = torch.backends.cudnn.allow_tf32 if cudnn else precision != "highest"
    return "tf32" if rounds else "highest"


@dataclass(frozen=True)
class Reference:
    """The gradients that a backward pass starts from, and what native makes of it in float64."""

    grad_outputs: Outputs
    results: dict[str, Tensor]


def reference_of(op: Op, inputs: Inputs) -> Reference:
    """Run native on float64 copies."""
    with torch.no_grad():
        grad_outputs = random_like(op.run(op.native, inputs))
    wide = tuple(g.double() for g in grad_outputs)
    copies = inputs.map(lambda t: t.double())
    return Reference(grad_outputs, outputs_and_gradients(op, op.native, copies, wide))


def verify(
    op: Op,
    inputs: Inputs,
    shape: Shape,
    *,
    function: Function | None = None,
    kinks: bool = False,
    reference: Reference | None = None,
) -> dict[str, Verdict]:
    """Judge outputs and gradients of `function` (default `op.ours`) by the error rule.

    Keys are those of `outputs_and_gradients`. The verdict on an output is the worse of two, with
    autograd and without. kinks: see `numerics.compare`. reference: of the same values, which may
    lie otherwise in memory; None to compute it.
    """
    function, reference = function or op.ours, reference or reference_of(op, inputs)
    grad_outputs: Outputs | None = reference.grad_outputs
    with torch.no_grad():
        inferred = outputs_and_gradients(op, function, inputs)
    if [o.shape for o in inferred.values()] != [g.shape for g in reference.grad_outputs]:
        grad_outputs = None  # Into a wrong shape no gradient flows: the outputs say enough.
    ours = outputs_and_gradients(op, function, inputs, grad_outputs)
    native = outputs_and_gradients(op, op.native, inputs, grad_outputs)
    device = next(iter(inputs.tensors.values())).device.type

    def judged(name: str, result: Tensor) -> Verdict:
        backward = name.startswith("grad_")
        verdict = compare(
            result,
            native[name],
            reference.results[name],
            direction="backward" if backward else "forward",
            terms=op.terms(shape),
            precision=float32_precision(device, cudnn=op.cudnn),
            exact=op.selects and not backward,
            max_zeros=MOSTLY_ZEROS if op.selects or kinks else MAX_ZEROS,
            kinks=kinks and backward,
        )
        return replace(verdict, kinked=op.kinked and backward)

    verdicts = {name: judged(name, ours[name]) for name in native}
    for name, result in inferred.items():
        if not torch.equal(result, ours[name]):
            verdicts[name] = max(verdicts[name], judged(name, result), key=_badness)
    return verdicts


def _badness(verdict: Verdict) -> tuple[bool, float]:
    return not verdict.passed, verdict.used


def kernels(op: Op, inputs: Inputs) -> dict[str, list[str]]:
    """Which kernels ran forward and backward, by what their names say after the direction."""
    with pyops.explain() as forward:
        outputs = op.run(op.ours, inputs)
    wanted = [t for t in inputs.tensors.values() if t.requires_grad]
    with pyops.explain() as backward:
        torch.autograd.grad(outputs, wanted, random_like(outputs))
    return {
        direction: list(dict.fromkeys(_way(call.kernel) for call in log.calls))
        for direction, log in (("forward", forward), ("backward", backward))
    }


def _way(kernel: str) -> str:
    return re.sub(r".*_(forward|backward)_", "", kernel)


def _flat(outputs: Any) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
