"""explain(): every call, the kernel that served it, and why better rows did not."""

import threading

import pytest
import torch

import pyops
from pyops._control import Call

linear = pyops.functional.linear
X, W = torch.ones(2, 3), torch.ones(4, 3)


def test_a_call_is_described():
    with pyops.isa_cap("scalar"), pyops.explain() as log:
        linear(X.double(), W.double())
    (call,) = log.calls
    assert (call.op, call.dtype, call.kernel) == ("linear", "float64", "linear_forward_scalar")
    assert call.shapes == [(2, 3), (4, 3)]
    reasons = dict(call.rejected)
    better = ("amx", "avx512_bf16", "avx512", "avx2")
    assert set(reasons) == {f"linear_forward_{isa}" for isa in better}
    assert set(reasons.values()) <= {"above the ISA cap", "not on this CPU", "dtype"}


def test_backward_is_seen():
    x = X.clone().requires_grad_()
    with pyops.explain() as log:
        linear(x, W).sum().backward()
    assert [call.op for call in log.calls] == ["linear", "linear_backward"]


def test_what_stays_native_says_why():
    cases = [
        ("dtype", X.int(), W.int()),
        ("layout", X.to_sparse(), W),
        ("a vector as weight, or a bias that broadcasts", X, W[0]),
    ]
    for reason, x, w in cases:
        with pyops.explain() as log:
            linear(x, w)
        (call,) = log.calls
        assert call.kernel == "native"
        assert [why for _, why in call.rejected] == [reason]


def test_a_transform_stays_native_and_says_why():
    with pyops.explain() as log:
        torch.func.jvp(lambda x: linear(x, W), (X,), (X,))
    assert dict(log.calls[0].rejected).popitem()[1] == "functorch transform"


P = pyops.functional


@pytest.mark.filterwarnings("error")  # of a loop over the batch
@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("conv2d", lambda x: P.conv2d(x, x)),
        ("conv2d_relu", lambda x: P.conv2d_relu(x, x, padding="same")),
        ("conv2d_relu_max_pool2d", lambda x: P.conv2d_relu_max_pool2d(x, x, padding="same")),
        ("max_pool2d", lambda x: P.max_pool2d(x, 2)),
        ("max_pool2d_with_indices", lambda x: P.max_pool2d(x, 2, return_indices=True)),
        ("linear", lambda x: linear(x, x[0, 0])),
        ("linear_relu", lambda x: P.linear_relu(x, x[0, 0])),
        ("scaled_dot_product_attention", lambda x: P.scaled_dot_product_attention(x, x, x)),
        ("gru_cell", lambda x: P.gru_cell(x[0, 0], x[0, 0], *torch.ones(2, 12, 4))),
    ],
)
def test_vmap_stays_native_and_says_why(op, call):
    with pyops.explain() as log:
        torch.func.vmap(call)(torch.rand(2, 3, 3, 4, 4))
    (seen,) = log.calls
    assert (seen.op, seen.kernel) == (op, "native")
    assert [why for _, why in seen.rejected] == ["functorch transform"]


def test_printing_gives_a_table():
    with pyops.explain() as log:
        linear(X, W)
        pyops.functional.linear_relu(X.double(), W.double(), torch.ones(4).double())
    head, first, second = str(log).splitlines()
    assert head.split() == ["op", "dtype", "shapes", "kernel", "not", "used"]
    assert first.split()[:4] == ["linear", "float32", "2x3", "4x3"]
    assert second.split()[:5] == ["linear_relu", "float64", "2x3", "4x3", "4"]
    assert head.index("kernel") == first.index("linear_forward") == second.index("linear_forward")


def test_a_reason_is_printed_once_with_the_places_it_holds_for():
    absent = [(f"f_forward_{place}", "not on this CPU") for place in ("amx", "avx512_bf16")]
    rejected = [*absent, ("f_forward_avx2", "dtype")]
    calls = [
        Call("f", [(2, 3)], "float32", "f_forward_scalar", rejected),
        Call("f", [()], "int32", "native", [("every kernel of ours", "dtype")]),
    ]
    _, first, second = str(pyops.CallLog(calls)).splitlines()
    assert first.endswith("f_forward_scalar  amx, avx512_bf16: not on this CPU; avx2: dtype")
    assert second.endswith("native            every kernel of ours: dtype")


def test_nested_logs_see_their_own_block():
    with pyops.explain() as outer:
        linear(X, W)
        with pyops.explain() as inner:
            linear(X.double(), W.double())
    assert [call.dtype for call in outer.calls] == ["float32", "float64"]
    assert [call.dtype for call in inner.calls] == ["float64"]


def test_other_threads_are_seen_and_nothing_outside_the_block():
    linear(X, W)
    with pyops.explain() as log:
        threads = [threading.Thread(target=linear, args=(X, W)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    linear(X, W)
    assert len(log.calls) == 8
