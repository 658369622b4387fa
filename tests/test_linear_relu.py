"""linear and linear_relu."""

import pytest
import torch
import torch.nn.functional as F

import pyops
from suite import Case, ExactSuite, Randn, Reject, on_devices


def linear_cases(shift):
    """shift: added to the bias, so that a following ReLU passes most elements."""

    def case(name, rows, k, n):
        rows = rows if isinstance(rows, tuple) else (rows,)
        weight = Randn(n, k, scale=2.0 ** -(k.bit_length() // 2))
        return Case(name, input=Randn(*rows, k), weight=weight, bias=Randn(n, shift=shift))

    return [
        case("tiny", 3, 5, 4),
        case("odd", 37, 67, 35),
        case("one vector", (), 17, 9),
        case("one row", 1, 129, 65),
        case("one feature", 9, 1, 33),
        case("two features", 41, 2, 50),
        case("few features to few", 70, 15, 9),
        case("some features to few", 21, 37, 5),
        case("three dimensions", (2, 3, 7), 33, 17),
        case("blocks in depth and rows", 225, 323, 49),
        case("deep", 50, 3100, 77),
        case("few rows", 13, 66, 214),
        case("no rows", 0, 5, 4),
        case("no inputs", 9, 0, 8),
        case("no outputs", 3, 5, 0),
    ]


LINEAR_REJECTS = [
    Reject("must end in in_features=5, .* got \\[3, 6\\]", input=Randn(3, 6)),
    Reject("input must have at least one dimension", input=Randn()),
    Reject("weight must be \\(out_features, in_features\\)", weight=Randn(2, 4, 5)),
    Reject("weight must have the input's dtype", weight=Randn(4, 5, dtype=torch.float64)),
    Reject("bias must have the input's dtype", bias=Randn(4, dtype=torch.float64)),
]


class TestLinear(ExactSuite):
    op, reference = staticmethod(pyops.functional.linear), staticmethod(F.linear)
    cases = [
        *linear_cases(shift=0),
        Case("no bias", input=Randn(9, 12), weight=Randn(20, 12, scale=0.25), bias=None),
        Case("vector weight", input=Randn(9, 12), weight=Randn(12, scale=0.25)),
        Case(
            "one bias for all", input=Randn(9, 12), weight=Randn(20, 12, scale=0.25), bias=Randn(1)
        ),
    ]
    rejects = LINEAR_REJECTS

    @pytest.mark.parametrize("threads", [5, 7])
    def test_threads_divide_many_rows(self, threads, dtype, place):
        """More threads than blocks of columns: blocks of rows must not grow past their room."""
        case = Case("many rows", input=Randn(1200, 7), weight=Randn(67, 7), bias=Randn(67))
        torch.set_num_threads(threads)
        try:
            self.test_exact(case, dtype, place)
        finally:
            torch.set_num_threads(1)

    @pytest.mark.parametrize("few", range(1, 9))
    def test_few_rows_or_columns(self, few, dtype, place):
        """Each number of them has a kernel; 131 numbers are no whole vectors."""
        for rows, columns in ((few, 41), (41, few)):
            x, weight = Randn(rows, 131), Randn(columns, 131, scale=0.125)
            case = Case(f"{rows} by {columns}", input=x, weight=weight, bias=Randn(columns))
            self.test_exact(case, dtype, place)

    @pytest.mark.parametrize("rows", [1, 9, 16])
    def test_outer_products_larger_than_caches(self, rows, dtype, place):
        """Results' rows share sets of L1 (1024 columns), or not."""
        for columns in (1024, 500):
            x, weight = Randn(rows, columns), Randn(300, columns, scale=0.0625)
            case = Case(f"{rows} by {columns}", input=x, weight=weight, bias=None)
            self.test_exact(case, dtype, place)


class TestLinearReLU(ExactSuite):
    op = staticmethod(pyops.functional.linear_relu)
    reference = staticmethod(lambda **arguments: F.relu(F.linear(**arguments)))
    cases = linear_cases(shift=2)
    rejects = LINEAR_REJECTS


@pytest.mark.parametrize("suite", [TestLinear, TestLinearReLU])
def test_none_is_no_tensor(suite):
    """What a forward that forgot to return hands on."""
    with pytest.raises(TypeError, match="input must be a Tensor, got NoneType"):
        suite.op(input=None, weight=torch.randn(3, 8))


@pytest.mark.parametrize("suite", [TestLinear, TestLinearReLU])
def test_differentiable_gradients_of_nothing(suite):
    for case in (c for c in suite.cases if c.empty):
        grads = []
        for op in (suite.op, suite.reference):
            arguments = case.draw(torch.float32)
            y = op(**arguments)
            grads.append(torch.autograd.grad(y.sum(), arguments.values(), create_graph=True))
        assert all(map(torch.equal, *grads)), case.name


@pytest.mark.parametrize(
    "reject",
    [
        Reject("grad and relu_output must be .* got \\[1, 1\\], \\[2, 3\\]", grad=Randn(1, 1)),
        Reject("grad and relu_output must be", relu_output=Randn(2, 4)),
        Reject("grad and relu_output must be", weight=Randn(3)),
        Reject("grad and relu_output must be", input=Randn(2, 5)),
        Reject("every tensor must have grad's dtype", input=Randn(2, 4, dtype=torch.float64)),
        Reject("the input's gradient takes the weight", weight=None),
        Reject("the input's gradient takes the weight", input=None),
    ],
    ids=lambda reject: reject.match,
)
@on_devices
def test_backward_refuses_what_no_forward_left(reject, device):
    right = dict(grad=Randn(2, 3), input=Randn(2, 4), weight=Randn(3, 4), relu_output=Randn(2, 3))
    case = Case("backward", **right | reject.arguments, wanted=[True] * 3)
    with pytest.raises(RuntimeError, match=f"linear_backward: {reject.match}"):
        torch.ops.pyops.linear_backward(**case.draw(torch.float32, device, grad=False))


@pytest.mark.parametrize("suite", [TestLinear, TestLinearReLU])
@pytest.mark.parametrize("frozen", [["weight"], ["input"], ["input", "weight"]], ids=" ".join)
@on_devices
def test_saves_no_more_than_native(suite, frozen, device):
    """A frozen layer keeps no input, which may be written to."""
    results = []
    for op in (suite.op, suite.reference):
        arguments = suite.cases[0].draw(torch.float32, device)
        for name in frozen:
            arguments[name] = arguments[name].detach()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
            op(**arguments)
        y = op(**arguments)
        if frozen == ["weight"]:
            with torch.no_grad():
                arguments["input"].zero_()
        grads = torch.autograd.grad(y.sum(), [t for t in arguments.values() if t.requires_grad])
        results.append((sum(t.numel() for t in saved), grads))
    (ours, grads), (native, expected) = results
    assert ours <= native
    torch.testing.assert_close(grads, expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("suite", [TestLinear, TestLinearReLU])
def test_nested_tensors(suite, layout):
    arguments = suite.cases[0].draw(torch.float32)
    rows = arguments.pop("input").detach()
    arguments["input"] = torch.nested.nested_tensor([rows, rows[:2]], layout=layout)
    ours, native = suite.op(**arguments), suite.reference(**arguments)
    assert ours.is_nested and ours.layout == layout
    for a, b in zip(ours.unbind(), native.unbind(), strict=True):
        assert torch.equal(a, b)
