"""The tests all operators share; an operator's test file says what is its own.

    class TestLinear(ExactSuite):
        op, reference = staticmethod(pyops.functional.linear), staticmethod(F.linear)
        cases = [Case("odd", input=Randn(37, 67), weight=Randn(35, 67, scale=1 / 8))]
        rejects = [Reject("linear: input must end in", weight=Randn(35, 66))]

`op` and `reference` (the native composite) take a case's arguments by name. The first case is the
smallest: what is expensive runs on it alone; the second is a usual one. Every input is drawn from
the case's own seed, so the test's name reproduces it.
"""

from contextlib import nullcontext

import pytest
import torch

import pyops
from composition import Composition
from judging import (
    Case,
    Randn,
    Reject,
    convert,
    flat,
    judge,
    name_of,
    redrawn,
    results,
    tensors_of,
    widen,
)
from layouts import LAYOUTS, dense_strides
from pyops.numerics import DRAWS, MAX_ZEROS, vacuous

__all__ = ["DEVICES", "Case", "ExactSuite", "OpSuite", "Randn", "Reject", "isas", "on_devices"]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16", "amx"]
SMALL = 100  # input elements of a case that finite differences can afford


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
on_devices = pytest.mark.parametrize("device", DEVICES)


def isas(least="scalar"):
    """The instruction sets from `least` on as parameters; what this machine lacks is skipped."""
    have = ISAS.index(pyops._C.isa_detected())

    def place(isa):
        missing = ISAS.index(isa) > have
        return pytest.param(isa, marks=pytest.mark.skipif(missing, reason=f"no {isa} here"))

    return [place(isa) for isa in ISAS[ISAS.index(least) :]]


class OpSuite(Composition):
    """Subclass it as a `Test…` class with `op`, `reference`, `cases` and `rejects`."""

    op = reference = None
    cases: list[Case] = []
    rejects: list[Reject] = []
    dtypes = DTYPES
    kinks = False  # gradients through decisions on computed values (see numerics.compare)
    max_zeros = MAX_ZEROS

    def pytest_generate_tests(self, metafunc):
        """`case`: all; `small`: those finite differences can afford; `place`: every ISA, CUDA."""
        small = [c for c in self.cases if c.elements <= SMALL and not c.empty]
        axes = {
            "case": self.cases,
            "small": small or self.cases[:1],
            "reject": self.rejects,
            "dtype": self.dtypes,
            "common": [torch.float32, torch.bfloat16],
            "half": [t for t in self.dtypes if t in HALF],
            "layout": list(LAYOUTS),
            "device": DEVICES,
        }
        for axis in (a for a in axes if a in metafunc.fixturenames):
            ids = [c.name for c in axes[axis]] if axis in ("case", "small") else name_of
            ids = [r.match for r in axes[axis]] if axis == "reject" else ids
            metafunc.parametrize(axis, axes[axis], ids=ids)
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("place", [*isas(), *DEVICES[1:]], indirect=True)

    @pytest.fixture
    def place(self, request):
        """The device; on the CPU with kernels capped to one instruction set."""
        device = "cuda" if request.param == "cuda" else "cpu"
        with nullcontext() if device == "cuda" else pyops.isa_cap(request.param):
            yield device

    @property
    def largest(self):
        return max(self.cases, key=lambda case: case.elements)

    def judge(self, arguments, case, function=None, **rule):
        """`op`, or `function` in its place, on a case's arguments."""
        rule = {"max_zeros": 1.0 if case.empty else self.max_zeros, **rule}
        op = function or self.op
        return judge(op, self.reference, arguments, terms=case.terms, kinks=self.kinks, **rule)

    def assert_lies_as(self, native, ours, place):
        """The outputs' layout in memory is native's."""
        for name in (n for n in ours if n.startswith("output")):
            assert dense_strides(ours[name]) == dense_strides(native[name]), name

    def test_forward(self, case, dtype, place):
        ours, native = self.judge(case.draw(dtype, place, grad=False), case)
        self.assert_lies_as(native, ours, place)

    def test_backward(self, case, dtype, place):
        self.judge(case.draw(dtype, place), case)

    def test_redraws_prove_as_much(self, case):
        """Where draws of a case are settled together, each must be one that can fail."""
        arguments = case.draw(torch.float32)
        most = 1.0 if case.empty else self.max_zeros
        for draw in range(1, DRAWS):
            again = {name: redrawn(a, draw) for name, a in arguments.items()}
            wide = results(self.reference, convert(again, widen))
            assert {n: why for n, t in wide.items() if (why := vacuous(t, most))} == {}, draw

    def test_inference_mode(self, case, device):
        with torch.inference_mode():
            self.judge(case.draw(torch.float32, device, grad=False), case)

    def test_layout(self, layout, common, place):
        """Each tensor in turn; neither the result nor its strides may differ from native's."""
        case = self.cases[1]
        for name in tensors_of(case.draw(common)):
            arguments = case.draw(common, place)
            arguments[name] = LAYOUTS[layout](arguments[name].detach()).requires_grad_()
            ours, native = self.judge(arguments, case)
            self.assert_lies_as(native, ours, place)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_nonfinite(self, value, common, place):
        """In each tensor in turn, at its first element: it comes out where native lets it."""
        case = self.largest
        for name in tensors_of(case.draw(common)):
            arguments = case.draw(common, place)
            with torch.no_grad():
                arguments[name].view(-1)[0] = value
            self.judge(arguments, case, max_zeros=1.0)

    def test_gradcheck(self, small, place):
        arguments = small.draw(torch.float64, place)
        tensors = tensors_of(arguments)

        def function(*values):
            return self.op(**arguments | dict(zip(tensors, values, strict=True)))

        inputs = tuple(tensors.values())
        assert torch.autograd.gradcheck(function, inputs, nondet_tol=0)
        assert torch.autograd.gradgradcheck(function, inputs, nondet_tol=0, atol=1e-4)

    def test_repeats_are_equal(self, place):
        """Bit by bit, while other allocations come and go."""
        arguments = self.largest.draw(torch.float32, place)
        first = results(self.op, arguments)
        for i in range(20):
            churn = [torch.empty(1000 * (i + 1), device=place) for _ in range(3)]
            again = results(self.op, arguments)
            del churn
            assert [name for name in first if not torch.equal(first[name], again[name])] == []

    def test_threads(self, case, place):
        """Three, an uneven split; every other test runs on one."""
        torch.set_num_threads(3)
        try:
            self.judge(case.draw(torch.float32, place), case)
        finally:
            torch.set_num_threads(1)

    @pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
    def test_rejects(self, reject, inference, device):
        """With native's exception type on the CPU, also where autograd does not look.

        On a GPU it depends on the library that native asks, and some crash.
        """
        base = self.cases[0]
        case = Case(base.name, **base.arguments | reject.arguments)
        with torch.inference_mode(inference):
            with pytest.raises(Exception) as native:
                self.reference(**case.draw(torch.float32, grad=not inference))
            with pytest.raises(native.type, match=reject.match) as ours:
                self.op(**case.draw(torch.float32, device, grad=not inference))
            assert ours.type is native.type

    @pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
    @pytest.mark.parametrize("other", [torch.int64, torch.uint8, torch.complex64], ids=name_of)
    def test_other_dtypes_do_what_native_does(self, other, inference, device):
        with torch.inference_mode(inference):
            arguments = self.cases[0].draw(other, device)
            try:
                native = self.reference(**arguments)
            except Exception as error:
                with pytest.raises(type(error)):
                    self.op(**arguments)
            else:
                for ours, theirs in zip(flat(self.op(**arguments)), flat(native), strict=True):
                    assert torch.equal(ours, theirs)


class ExactSuite(OpSuite):
    """For operators that sum or select: on small integers nothing is rounded but the last store."""

    def test_exact(self, case, dtype, place):
        """Tolerance 0: every wrong index shows, where an error rule might let one pass."""
        arguments = case.draw(dtype, place, integers=True)
        ours = results(self.op, arguments, integers=True)
        wide = results(self.reference, convert(arguments, widen), integers=True)
        for name in wide:
            assert torch.equal(ours[name], wide[name].to(dtype)), name

    @pytest.mark.parametrize("exponent", [-135, 50])
    def test_range(self, exponent, common, place):
        """All inputs near the ends of the exponents: subnormal, or with products that just fit."""
        tiles = common == torch.bfloat16 and place == "cpu" and pyops.isa() == "amx"
        if tiles and exponent < 0 and not torch.cpu._is_amx_tile_supported():
            pytest.skip("emulated tiles take subnormals for zero, native without tiles does not")
        for case in (self.cases[1], self.largest):
            arguments = convert(case.draw(common, place), lambda t: t * 2.0**exponent)
            self.judge(arguments, case, max_zeros=1.0)
