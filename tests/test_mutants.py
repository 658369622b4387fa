"""Wrong operators: each must be refused by the check of the suite that is there to catch it."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import Unsupported
from torch.autograd.gradcheck import GradcheckError

import pyops
import test_linear_relu

ours = pyops.functional.linear_relu


def relu(x, w, b):
    return F.relu(F.linear(x, w, b))


def gradient_times(t, factor):
    """t, whose gradient is multiplied by `factor`."""
    return t.detach() + (t - t.detach()) * factor


def skip_last(t, dim=-1):
    """Ones, but zeros at the end of `dim`."""
    keep = torch.ones_like(t)
    return keep.index_fill(dim, torch.tensor(t.shape[dim] - 1), 0) if t.dim() else keep


def masked_where(keep):
    """linear_relu whose gradient passes where `keep(y)`."""

    def mutant(x, w, b):
        y = F.linear(x, w, b)
        through = gradient_times(y, keep(y.detach()).to(y.dtype))
        return through + (F.relu(y) - y).detach()

    return mutant


def rounded_on_the_way(x, w, b):
    """The first half of the sum passes through eight bits."""
    half = x.shape[-1] // 2
    first = F.linear(x[..., :half], w[..., :half])
    lost = (first - first.bfloat16().to(first.dtype)).detach()
    return F.relu(F.linear(x[..., half:], w[..., half:], b) + first - lost / 16)


def changing_its_input(x, w, b):
    y = relu(x, w, b)
    with torch.no_grad():
        x.mul_(2)
    return y


def transposed_in_memory(x, w, b):
    return relu(x, w, b).t().contiguous().t()


def drifting(x, w, b, calls=itertools.count()):  # noqa: B008 -- shared by all calls on purpose
    return relu(x, w, b) + 1e-6 * (next(calls) % 2)


def believing_in_contiguity(x, w, b):
    """Reads the input's memory in order, whatever its strides."""
    flat = torch.as_strided(x, (x.numel(),), (1,))
    return relu(flat.view(x.shape), w, b)


def losing_nan(x, w, b):
    return relu(x, w, b).nan_to_num()


def accepting_anything(x, w, b):
    k = min(x.shape[-1], w.shape[-1]) if x.dim() else 0
    return x.new_zeros(*x.shape[:-1], w.shape[0]) if k != 5 else relu(x, w, b)


def leaving_the_graph(x, w, b):
    torch._dynamo.graph_break()
    return relu(x, w, b)


def curved(x, w, b):
    """Right, but for the second derivative."""
    y = relu(x, w, b)
    return y + (y - y.detach()).pow(2)


def wrong_at_first():
    """Right in every call but one."""
    calls = itertools.count()
    return lambda input, weight, bias: relu(input, weight, bias) * (1.5 - 0.5 * (next(calls) > 0))


WRONG = {
    "dropped bias": ("test_forward", lambda x, w, b: relu(x, w, 0 * b)),
    "bias off by one": ("test_forward", lambda x, w, b: relu(x, w, b.roll(1))),
    "inputs off by one": ("test_forward", lambda x, w, b: relu(x.roll(1, -1), w, b)),
    "last input skipped": ("test_forward", lambda x, w, b: relu(x * skip_last(x), w, b)),
    "last output skipped": ("test_forward", lambda x, w, b: relu(x, w, b) * skip_last(b)),
    "last row skipped": ("test_forward", lambda x, w, b: relu(x * skip_last(x, 0), w, b)),
    "no ReLU": ("test_forward", lambda x, w, b: F.linear(x, w, b)),
    "another dtype": ("test_forward", lambda x, w, b: relu(x, w, b).to(torch.complex64)),
    "another shape": ("test_forward", lambda x, w, b: relu(x, w, b)[None]),
    "another memory format": ("test_forward", transposed_in_memory),
    "input changed": ("test_forward", changing_its_input),
    "uninitialised memory": ("test_forward", lambda x, w, b: relu(x, w, b) + 0 * b.new_empty(())),
    "bits lost": ("test_forward", rounded_on_the_way),
    "mask inverted": ("test_backward", masked_where(lambda y: y <= 0)),
    "no mask": ("test_backward", masked_where(lambda y: y == y)),
    "mask keeps zero": ("test_exact", masked_where(lambda y: y >= 0)),
    "one element wrong": ("test_exact", lambda x, w, b: relu(x, w, b) + 1 - skip_last(b)),
    "no gradient": ("test_backward", lambda x, w, b: relu(x, w, b.detach())),
    "gradient doubled": ("test_backward", lambda x, w, b: relu(x, w, gradient_times(b, 2))),
    "gradient skips a row": (
        "test_backward",
        lambda x, w, b: relu(gradient_times(x, skip_last(x, 0)), w, b),
    ),
    "gradient skips a column": (
        "test_backward",
        lambda x, w, b: relu(x, gradient_times(w, skip_last(w)), b),
    ),
    "wrong second derivative": ("test_gradcheck", curved),
    "strides ignored": ("test_layout", believing_in_contiguity),
    "NaN lost": ("test_nonfinite", losing_nan),
    "drifting": ("test_repeats_are_equal", drifting),
    "wrong in inference mode": (
        "test_inference_mode",
        lambda x, w, b: relu(x, w, b) * (1 - 0.1 * torch.is_inference_mode_enabled()),
    ),
    "wrong with threads": (
        "test_threads",
        lambda x, w, b: relu(x, w, b) * (1 - 0.1 * (torch.get_num_threads() > 1)),
    ),
    "nothing refused": ("test_rejects", accepting_anything),
    "integers wrong": ("test_other_dtypes_do_what_native_does", lambda x, w, b: relu(x, w, b) + 1),
    "autocast ignored": ("test_autocast", torch.autocast("cpu", enabled=False)(relu)),
    "not an operator": ("test_opcheck", relu),
    "not in the graph": ("test_export_keeps_the_operator", relu),
    "a graph break": ("test_compile", leaving_the_graph),
    "a subclass lost": (
        "test_tensor_subclass",
        lambda x, w, b: relu(*(t.inner for t in (x, w, b))),
    ),
    "wrong for a batch": (
        "test_functorch",
        lambda x, w, b: relu(x, w, b) * (1 + torch._C._functorch.is_batchedtensor(x)),
    ),
    "tangent lost": ("test_forward_mode", lambda x, w, b: relu(x.detach(), w, b)),
}

SUITE = test_linear_relu.TestLinearReLU
ODD = next(case for case in SUITE.cases if case.name == "odd")
AXES = {
    "case": ODD,
    "small": SUITE.cases[0],
    "dtype": torch.float32,
    "common": torch.float32,
    "half": torch.bfloat16,
    "other": torch.int64,
    "place": "cpu",
    "device": "cpu",
    "layout": "permuted",
    "value": torch.nan,
    "reject": SUITE.rejects[0],
    "inference": False,
    "grad": False,
    "dynamic": False,
    "transform": "vmap",
}


def run(check, op, **axes):
    suite = type("Mutated", (SUITE,), {"op": staticmethod(op)})()
    method = getattr(suite, check)
    method(**{name: (AXES | axes)[name] for name in inspect.signature(method).parameters})


@pytest.mark.parametrize("check", sorted({check for check, _ in WRONG.values()}))
def test_a_right_operator_passes(check):
    run(check, ours)


REFUSED = (AssertionError, pytest.fail.Exception, GradcheckError, Unsupported)


@pytest.mark.parametrize("mutant", WRONG)
def test_a_wrong_one_does_not(mutant):
    check, op = WRONG[mutant]
    with pytest.raises(REFUSED):
        run(check, lambda input, weight, bias: op(input, weight, bias))


@pytest.mark.parametrize("dtype", SUITE.dtypes, ids=str)
@pytest.mark.parametrize("check", ["test_forward", "test_backward"])
def test_later_calls_do_not_excuse_the_first(check, dtype):
    with pytest.raises(REFUSED):
        run(check, wrong_at_first(), dtype=dtype)


@pytest.mark.parametrize("before", [False, True])
def test_a_read_beside_a_guarded_tensor_faults(before):
    script = f"""
import ctypes, torch
from layouts import guarded
t = guarded(torch.arange(5.0), before={before})
assert t.tolist() == [0, 1, 2, 3, 4]
ctypes.c_float.from_address(t.data_ptr() + ({-4 if before else 20})).value
"""
    result = subprocess.run([sys.executable, "-c", script], cwd="tests", capture_output=True)
    assert result.returncode < 0, result.stderr
