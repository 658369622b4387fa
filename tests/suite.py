"""The tests all operators share; an operator's test file says what is its own.

    class TestLinear(ExactSuite):
        op, reference = staticmethod(pyops.functional.linear), staticmethod(F.linear)
        cases = [Case("odd", input=Randn(37, 67), weight=Randn(35, 67, scale=1 / 8))]
        rejects = [Reject("linear: input must end in", weight=Randn(35, 66))]

`op` and `reference` (the native composite) take a case's arguments by name. The first case is the
smallest: what is expensive runs on it alone. Every input is drawn from the case's own seed, so the
test's name reproduces it.
"""

import zlib
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import pyops
from guard import guarded
from pyops.numerics import MAX_ZEROS, compare

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
ISAS = ["scalar", "avx2", "avx512", "amx"]
SMALL = 100  # input elements of a case that finite differences can afford


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
    torch.default_generator.manual_seed(0)  # the same dropout for everybody
    outputs = flat(function(**arguments))
    named = {f"output{i}": o for i, o in enumerate(outputs)}
    leaves, ends = tensors_of(arguments), [o for o in outputs if o.requires_grad]
    if leaves and ends:
        starts = gradients_like(ends, integers=integers)
        gradients = torch.autograd.grad(ends, list(leaves.values()), starts, allow_unused=True)
        named |= {f"grad_{n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {name: t.detach() for name, t in named.items() if t is not None}


def judge(op, reference, arguments, *, low=None, **rule):
    """The results of `op` by the error rule (see numerics.compare), then those of `reference`.

    low: the dtype autocast computes in, where gradients come back wider than they are accurate.
    """
    before = {n: a.detach().clone() for n, a in arguments.items() if isinstance(a, Tensor)}
    ours = results(op, arguments)
    for name, value in before.items():
        torch.testing.assert_close(arguments[name], value, rtol=0, atol=0, equal_nan=True)
    native = results(reference, arguments)
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in native.items()}
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        wide = results(reference, convert(arguments, widen))
    rounded = [{n: t.to(low or t.dtype) for n, t in r.items()} for r in (ours, native)]
    assert_accurate(*rounded, wide, **rule)
    return ours, native


def assert_accurate(ours, native, wide, *, kinks=False, **rule):
    """Results by name, by the error rule; `wide` are the float64 ones."""
    assert ours.keys() == native.keys()
    verdicts = {}
    for name in native:
        backward = name.startswith("grad_")
        direction = "backward" if backward else "forward"
        verdicts[name] = compare(
            ours[name],
            native[name],
            wide[name],
            direction=direction,
            kinks=kinks and backward,
            **rule,
        )
    failed = {name: v.reason for name, v in verdicts.items() if not v.passed}
    assert not failed


def dense_strides(t):
    """The strides that say something: those of dimensions longer than one."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def strided(t):
    """Every other element of a buffer twice as long, in each row."""
    return t.new_full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan)[..., ::2].copy_(t)


def offset(t):
    """One element into its storage: no vector load of it is aligned."""
    return t.new_full((t.numel() + 1,), torch.nan)[1:].view(t.shape).copy_(t)


LAYOUTS = {
    "strided": strided,
    "offset": offset,
    "permuted": lambda t: (
        t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    ),
    "expanded first": lambda t: t[:1].expand_as(t),
    "expanded last": lambda t: t[..., :1].expand_as(t),
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "guarded after": guarded,
    "guarded before": partial(guarded, before=True),
}


class Recorder(TorchDispatchMode):
    """Keeps one call of each of our operators that runs below autograd."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pyops":
            self.calls.setdefault(func, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A tensor subclass that knows nothing of us: unwraps, computes, wraps again."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = partial(tree_map, lambda t: t.inner if isinstance(t, cls) else t)
        out = func(*unwrap(args), **unwrap(kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, out)


def _devices():
    cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return ["cpu", pytest.param("cuda", marks=cuda)]


def _places():
    have = ISAS.index(pyops._C.isa_detected())

    def place(i, isa):
        return pytest.param(isa, marks=pytest.mark.skipif(i > have, reason=f"no {isa} here"))

    return [*(place(i, isa) for i, isa in enumerate(ISAS)), *_devices()[1:]]


def name_of(value):
    """A dtype without its module; None leaves the name to pytest."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


class OpSuite:
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
            "device": _devices(),
        }
        for axis in (a for a in axes if a in metafunc.fixturenames):
            ids = [c.name for c in axes[axis]] if axis in ("case", "small") else name_of
            ids = [r.match for r in axes[axis]] if axis == "reject" else ids
            metafunc.parametrize(axis, axes[axis], ids=ids)
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("place", _places(), indirect=True)

    @pytest.fixture
    def place(self, request):
        """The device; on the CPU with kernels capped to one instruction set."""
        device = "cuda" if request.param == "cuda" else "cpu"
        with nullcontext() if device == "cuda" else pyops.isa_cap(request.param):
            yield device

    def judge(self, arguments, case, function=None, **rule):
        """`op`, or `function` in its place, on a case's arguments."""
        rule = {"max_zeros": 1.0 if case.empty else self.max_zeros, **rule}
        op = function or self.op
        return judge(op, self.reference, arguments, terms=case.terms, kinks=self.kinks, **rule)

    def test_forward(self, case, dtype, place):
        ours, native = self.judge(case.draw(dtype, place, grad=False), case)
        for name in ours:
            assert dense_strides(ours[name]) == dense_strides(native[name]), name

    def test_backward(self, case, dtype, place):
        self.judge(case.draw(dtype, place), case)

    def test_inference_mode(self, case, device):
        with torch.inference_mode():
            self.judge(case.draw(torch.float32, device, grad=False), case)

    def test_layout(self, layout, common, place):
        """Each tensor in turn; neither the result nor its strides may differ from native's."""
        case = self.cases[1] if len(self.cases) > 1 else self.cases[0]
        for name in tensors_of(case.draw(common)):
            arguments = case.draw(common, place)
            arguments[name] = LAYOUTS[layout](arguments[name].detach()).requires_grad_()
            ours, native = self.judge(arguments, case)
            for output in (n for n in ours if n.startswith("output")):
                assert dense_strides(ours[output]) == dense_strides(native[output]), name

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_nonfinite(self, value, common, place):
        """In each tensor in turn, at its first element: it comes out where native lets it."""
        case = self.cases[0]
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
        arguments = max(self.cases, key=lambda c: c.elements).draw(torch.float32, place)
        first = results(self.op, arguments)
        for i in range(20):
            churn = [torch.empty(1000 * (i + 1)) for _ in range(3)]
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
        """With native's exception type, also where autograd does not look."""
        base = self.cases[0]
        case = Case(base.name, **base.arguments | reject.arguments)
        with torch.inference_mode(inference):
            arguments = case.draw(torch.float32, device, grad=not inference)
            with pytest.raises(Exception) as native:
                self.reference(**arguments)
            with pytest.raises(native.type, match=reject.match) as ours:
                self.op(**arguments)
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

    @pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
    def test_autocast(self, case, half, grad, device):
        with torch.autocast(device, half):
            self.judge(case.draw(torch.float32, device, grad=grad), case, low=half)

    def test_opcheck(self, small, device):
        """PyTorch's own checks of schema, autograd, fake kernel and AOT, backward ops included."""
        with Recorder() as recorder:
            results(self.op, small.draw(torch.float32, device))
        assert recorder.calls
        for op, (args, kwargs) in recorder.calls.items():

            def leaf(t, op=op):
                own = isinstance(t, Tensor) and t.is_floating_point()
                return t.detach().clone().requires_grad_() if own else t

            torch.library.opcheck(op, tree_map(leaf, args), tree_map(leaf, kwargs))

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compile(self, small, dynamic, device):
        torch._dynamo.reset()
        compiled = torch.compile(
            self.op, fullgraph=True, backend="aot_eager", dynamic=dynamic or None
        )
        self.judge(small.draw(torch.float32, device), small, compiled)
        with torch.no_grad():
            self.judge(small.draw(torch.float32, device, grad=False), small, compiled)

    def test_compile_inductor(self, device):
        torch._dynamo.reset()
        case = self.cases[0]
        compiled = torch.compile(self.op, fullgraph=True)
        self.judge(case.draw(torch.float32, device), case, compiled)

    def test_export_keeps_the_operator(self, small, device):
        op = self.op

        class Module(torch.nn.Module):
            def forward(self, arguments):
                return op(**arguments)

        arguments = small.draw(torch.float32, device, grad=False)
        program = torch.export.export(Module(), (arguments,))
        targets = {getattr(n.target, "namespace", "") for n in program.graph.nodes}
        assert "pyops" in targets
        self.judge(arguments, small, lambda **arguments: program.module()(arguments))

    def test_tensor_subclass(self, device):
        arguments = self.cases[0].draw(torch.float32, device, grad=False)
        wrapped = {n: Wrapped(a) if isinstance(a, Tensor) else a for n, a in arguments.items()}
        outputs = zip(flat(self.op(**wrapped)), flat(self.reference(**arguments)), strict=True)
        for ours, native in outputs:
            assert isinstance(ours, Wrapped)
            torch.testing.assert_close(ours.inner, native)

    @pytest.mark.parametrize(
        "transform", ["vmap", "grad", "jvp", "jacrev", "jacfwd", "hessian", "vmap of grad"]
    )
    def test_functorch(self, transform, device):
        """Each tensor in turn, the others held fixed."""
        case = self.cases[0]
        arguments = case.draw(torch.float64, device, grad=False)
        names = list(tensors_of(case.draw(torch.float64)))
        for name in names:
            x, rest = arguments[name], {k: a for k, a in arguments.items() if k != name}
            ours, native = (
                flat(self.transformed(f, transform, name, rest)(x))
                for f in (self.op, self.reference)
            )
            for a, b in zip(ours, native, strict=True):
                assert_accurate({"": a}, {"": b}, {"": b}, max_zeros=1.0)

    @staticmethod
    def transformed(function, transform, name, rest):
        def call(x):
            return function(**{name: x}, **rest)

        def loss(x):
            return sum(o.pow(3).sum() for o in flat(call(x)) if o.is_floating_point())

        def batch(x):
            return torch.stack([x, x.flip(0), 2 * x])

        func = torch.func
        return {
            "vmap": lambda x: torch.vmap(call)(batch(x)),
            "grad": func.grad(loss),
            "jvp": lambda x: func.jvp(loss, (x,), (x.cos(),)),
            "jacrev": func.jacrev(loss),
            "jacfwd": func.jacfwd(loss),
            "hessian": func.hessian(loss),
            "vmap of grad": lambda x: torch.vmap(func.grad(loss))(batch(x)),
        }[transform]

    def test_forward_mode(self, device):
        arguments = self.cases[0].draw(torch.float64, device)
        with forward_ad.dual_level():
            duals = convert(arguments, lambda t: t)
            duals |= {n: forward_ad.make_dual(t, t.cos()) for n, t in tensors_of(duals).items()}
            ours, native = flat(self.op(**duals)), flat(self.reference(**duals))
            tangents = [[forward_ad.unpack_dual(o).tangent for o in out] for out in (ours, native)]
        for a, b in zip(*tangents, strict=True):
            if b is not None:
                assert_accurate({"": a}, {"": b}, {"": b}, max_zeros=1.0)


class ExactSuite(OpSuite):
    """For operators that sum or select: on small integers nothing is rounded but the last store."""

    def test_exact(self, case, dtype, place):
        """Tolerance 0: every wrong index shows, where an error rule might let one pass."""
        arguments = case.draw(dtype, place, integers=True)
        ours = results(self.op, arguments, integers=True)
        wide = results(self.reference, convert(arguments, widen), integers=True)
        for name in wide:
            assert torch.equal(ours[name], wide[name].to(dtype)), name
