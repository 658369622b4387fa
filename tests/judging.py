"""What a test compares: drawn arguments, the results of a function on them, the verdict."""

import zlib
from functools import partial

import torch
from torch import Tensor

from pyops.numerics import compare, settle


class Randn:
    """A differentiable argument: standard normal, times `scale`, plus `shift`.

    Exact tests round it to small integers first: keep `scale` a power of two, `shift` an integer.
    """

    def __init__(self, *shape, scale=1.0, shift=0.0, dtype=None):
        self.shape, self.scale, self.shift, self.dtype = shape, scale, shift, dtype

    def draw(self, generator, integers):
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return (values.round().clamp(-2, 2) if integers else values) * self.scale + self.shift


class Case:
    """Arguments by name: `Randn`, tensors (moved to the device, no gradient), anything else as is.

    terms: length of the longest sum behind one element where that grows with time (K·T).
    """

    def __init__(self, name, *, terms=1, **arguments):
        self.name, self.terms, self.arguments = name, terms, arguments
        self.drawn = [a for a in arguments.values() if isinstance(a, Randn)]
        self.elements = sum(torch.Size(a.shape).numel() for a in self.drawn)
        self.empty = any(0 in a.shape for a in self.drawn)

    def draw(self, dtype, device="cpu", *, integers=False, grad=True):
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

        def make(argument):
            if isinstance(argument, Randn):
                values = argument.draw(generator, integers).to(device, argument.dtype or dtype)
                return values.requires_grad_(grad and values.is_floating_point())
            return argument.to(device) if isinstance(argument, Tensor) else argument

        return {name: make(argument) for name, argument in self.arguments.items()}


class Reject:
    """The first case with some arguments replaced must raise native's exception, saying `match`."""

    def __init__(self, match, **arguments):
        self.match, self.arguments = match, arguments


def flat(outputs):
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def tensors_of(arguments):
    """The arguments that are differentiable tensors."""
    return {n: a for n, a in arguments.items() if isinstance(a, Tensor) and a.requires_grad}


def convert(arguments, change):
    """The same arguments with floating and complex tensors changed, as fresh leaves."""

    def fresh(a):
        inexact = isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex())
        return change(a.detach()).requires_grad_(a.requires_grad) if inexact else a

    return {name: fresh(a) for name, a in arguments.items()}


def widen(t):
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def gradients_like(outputs, *, integers=False):
    """The gradients a backward starts from, the same for every implementation."""
    generator = torch.Generator().manual_seed(1)
    draw = partial(Randn.draw, generator=generator, integers=integers)
    return [draw(Randn(*o.shape)).to(o.device, o.dtype) for o in outputs]


def results(function, arguments, *, integers=False):
    """Outputs and, for the arguments that want and get one, gradients, by name."""
    torch.manual_seed(0)  # the same dropout for everybody
    outputs = flat(function(**arguments))
    named = {f"output{i}": o for i, o in enumerate(outputs)}
    leaves, ends = tensors_of(arguments), [o for o in outputs if o.requires_grad]
    if leaves and ends:
        starts = gradients_like(ends, integers=integers)
        gradients = torch.autograd.grad(ends, list(leaves.values()), starts, allow_unused=True)
        named |= {f"grad_{n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {name: t.detach() for name, t in named.items() if t is not None}


def redrawn(value, draw):
    """Another draw of a tensor from its distribution, in the same layout: its numbers, shuffled.

    Whatever they are scaled to or lie around, they still do; what is not finite stays in its place.
    """
    if draw == 0 or not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return value
    memory = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
    memory = memory.clone()
    (finite,) = memory.isfinite().nonzero(as_tuple=True)
    order = torch.randperm(len(finite), generator=torch.Generator().manual_seed(draw))
    memory[finite] = memory[finite[order.to(finite.device)]]
    again = memory.as_strided(value.shape, value.stride(), value.storage_offset())
    return again.requires_grad_(value.requires_grad)


def judge(op, reference, arguments, *, low=None, **rule):
    """The results of `op` by the error rule (see numerics.compare), then those of `reference`.

    low: the dtype autocast computes in, where gradients come back wider than they are accurate.
    """
    first = {}

    def verdicts_of(draw):
        drawn = {name: redrawn(a, draw) for name, a in arguments.items()}
        before = {n: a.detach().clone() for n, a in drawn.items() if isinstance(a, Tensor)}
        ours = results(op, drawn)
        for name, value in before.items():
            torch.testing.assert_close(drawn[name], value, rtol=0, atol=0, equal_nan=True)
        native = results(reference, drawn)
        first.setdefault("results", (ours, native))
        assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in native.items()}
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            wide = results(reference, convert(drawn, widen))
        rounded = [{n: t.to(low or t.dtype) for n, t in r.items()} for r in (ours, native)]
        return verdicts(*rounded, wide, **rule)

    assert_passed(settle(verdicts_of))
    return first["results"]


def verdicts(ours, native, wide, *, kinks=False, **rule):
    """On results by name; `wide` are the float64 ones."""
    assert ours.keys() == native.keys()

    def judged(name):
        backward = name.startswith("grad_")
        direction = "backward" if backward else "forward"
        tensors = ours[name], native[name], wide[name]
        return compare(*tensors, direction=direction, kinks=kinks and backward, **rule)

    return {name: judged(name) for name in native}


def assert_passed(verdicts):
    assert {name: v.reason for name, v in verdicts.items() if not v.passed} == {}


def assert_accurate(ours, native, wide, **rule):
    """One draw's results, by the error rule."""
    assert_passed(verdicts(ours, native, wide, **rule))


def name_of(value):
    """A dtype without its module; None leaves the name to pytest."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
