"""An operator inside PyTorch's machinery: compilers, transforms, subclasses, saved tensors."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from judging import assert_accurate, convert, flat, results, tensors_of
from layouts import dense_strides


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
        assert func.namespace == "aten"
        unwrap = partial(tree_map, lambda t: t.inner if isinstance(t, cls) else t)
        out = func(*unwrap(args), **unwrap(kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, out)


class Named(Tensor):
    """A tensor subclass that changes nothing but its name."""


def fresh_leaf(t):
    floating = isinstance(t, Tensor) and t.is_floating_point()
    return t.detach().clone().requires_grad_() if floating else t


class Composition:
    """The part of OpSuite that asks nothing of the numbers but that they stay the same."""

    @pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
    def test_autocast(self, case, half, grad, device):
        with torch.autocast(device, half):
            self.judge(case.draw(torch.float32, device, grad=grad), case, low=half)

    def test_opcheck(self, small, device):
        """PyTorch's own checks of schema, autograd, fake kernel and AOT, backward ops included."""
        with Recorder() as recorder:
            results(self.op, small.draw(torch.float32, device))
        assert recorder.calls
        for op, call in recorder.calls.items():
            torch.library.opcheck(op, *tree_map(fresh_leaf, call))

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compile(self, small, dynamic, device):
        torch._dynamo.reset()
        compiled = torch.compile(
            self.op, fullgraph=True, backend="aot_eager", dynamic=dynamic or None
        )
        self.judge(small.draw(torch.float32, device), small, compiled)
        with torch.no_grad():
            self.judge(small.draw(torch.float32, device, grad=False), small, compiled)

    def test_compile_with_one_static(self, device):
        """Sizes of all tensors but the first are symbols: none is asked for in place of another."""
        torch._dynamo.reset()
        case = self.cases[0]
        arguments = case.draw(torch.float32, device)
        for t in list(tensors_of(arguments).values())[1:]:
            for dim in range(t.dim()):
                torch._dynamo.maybe_mark_dynamic(t, dim)
        compiled = torch.compile(self.op, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(results(compiled, arguments), results(self.op, arguments))

    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    def test_one_gradient_alone(self, compiled, device):
        """A backward that computes nothing unasked still answers each question right."""
        case = self.cases[0]
        for name in tensors_of(case.draw(torch.float32)):
            torch._dynamo.reset()
            op = (
                torch.compile(self.op, fullgraph=True, backend="aot_eager") if compiled else self.op
            )
            arguments = case.draw(torch.float32, device, grad=False)
            arguments[name].requires_grad_()
            ours, _ = self.judge(arguments, case, op)
            assert f"grad_{name}" in ours

    @pytest.mark.parametrize("order", [1, -1], ids=["forth", "back"])
    def test_inputs_from_each_other(self, small, order, device):
        """A gradient that is a graph is the same where a way leads from one input to another."""
        arguments = small.draw(torch.float64, device)
        leaves = tensors_of(arguments)
        before = torch.zeros((), dtype=torch.float64, device=device)
        for name in list(leaves)[::order]:
            arguments[name] = leaves[name] + before
            before = before + arguments[name].mean()
        loss = sum(y.square().sum() for y in flat(self.op(**arguments)) if y.requires_grad)
        plain = torch.autograd.grad(loss, leaves.values(), retain_graph=True)
        graph = torch.autograd.grad(loss, leaves.values(), create_graph=True)
        torch.testing.assert_close(graph, plain, rtol=1e-10, atol=1e-12)

    def test_results_are_no_views(self, case):
        """But where native's are: a view is not to be detached in place."""
        if case.arguments.get("batch_first"):
            pytest.skip("a transposed result is a view")
        for grad in (True, False):
            arguments = case.draw(torch.float32, grad=grad)
            ours, native = flat(self.op(**arguments)), flat(self.reference(**arguments))
            views = [a._is_view() and not b._is_view() for a, b in zip(ours, native, strict=True)]
            assert not any(views)

    def test_checkpoint(self, device):
        """Saved tensors go through PyTorch's hooks: forgotten, computed again, the same."""
        case = self.cases[0]
        self.judge(
            case.draw(torch.float32, device),
            case,
            lambda **a: checkpoint(lambda: self.op(**a), use_reentrant=False),
        )

    def test_compiled_autograd(self, device):
        """Where Dynamo traces the backward pass too, our node hands over all that it knows."""
        torch._dynamo.reset()
        case = self.cases[0]
        compiler = partial(torch.compile, backend="eager")
        with compiled_autograd._enable(compiler):
            self.judge(case.draw(torch.float32, device), case)

    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
    def test_anomaly_mode(self, device):
        """A gradient that is no number is blamed on the operator, where it was called."""
        case = self.cases[0]
        with torch.autograd.detect_anomaly(check_nan=False):
            self.judge(case.draw(torch.float32, device), case)
        with torch.autograd.detect_anomaly(), pytest.warns(UserWarning, match="forward call"):
            output = flat(self.op(**case.draw(torch.float32, device)))[0]
            with pytest.raises(RuntimeError, match=r"Function '\w+Backward0?' returned nan values"):
                output.backward(torch.full_like(output, torch.nan))

    def test_second_backward_is_refused(self, device):
        """Once used, a node has let go of what it saved."""
        case = self.cases[0]
        output = flat(self.op(**case.draw(torch.float32, device)))[0]
        output.sum().backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            output.sum().backward()

    def test_changed_after_saving(self, device):
        """Where native's backward refuses a saved tensor that has changed since, so does ours."""
        case = self.cases[0]
        for name in tensors_of(case.draw(torch.float32)):
            assert self.refuses_change(self.op, case, name, device) >= self.refuses_change(
                self.reference, case, name, device
            ), name

    @staticmethod
    def refuses_change(function, case, name, device):
        arguments = case.draw(torch.float32, device)
        output = flat(function(**arguments))[0]
        with torch.no_grad():
            arguments[name].add_(1)
        try:
            output.sum().backward()
        except RuntimeError as error:
            # The latter of a view that native takes of the argument.
            assert "modified by an inplace operation" in str(error) or (
                "has been modified inplace" in str(error)
            )
            return True
        return False

    def test_meta(self, case):
        """Shapes, dtypes and strides without data, gradients too."""
        arguments = case.draw(torch.float32, "meta")
        ours, native = results(self.op, arguments), results(self.reference, arguments)
        described = [
            {n: (t.shape, t.dtype, dense_strides(t)) for n, t in r.items()} for r in (ours, native)
        ]
        assert described[0] == described[1]

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

    @pytest.mark.parametrize("inference", [False, True], ids=["no grad", "inference"])
    def test_tensor_subclass(self, inference, device):
        """One that computes by itself is asked about native operators alone, in every mode."""
        with torch.inference_mode(inference):
            arguments = self.cases[0].draw(torch.float32, device, grad=False)
            wrapped = {n: Wrapped(a) if isinstance(a, Tensor) else a for n, a in arguments.items()}
            outputs = zip(flat(self.op(**wrapped)), flat(self.reference(**arguments)), strict=True)
            for ours, native in outputs:
                assert isinstance(ours, Wrapped)
                torch.testing.assert_close(ours.inner, native)
            named = {
                n: a.as_subclass(Named) if isinstance(a, Tensor) else a
                for n, a in arguments.items()
            }
            assert all(isinstance(output, Named) for output in flat(self.op(**named)))

    @pytest.mark.parametrize(
        "transform",
        ["vmap", "grad", "jvp", "jacrev", "jacfwd", "hessian", "vmap of grad", "batched backward"],
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
            "batched backward": lambda x: torch.autograd.functional.jacobian(
                lambda x: flat(call(x))[0], x, vectorize=True
            ),
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
