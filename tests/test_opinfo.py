"""PyTorch's own samples of the functions we stand in for: all of them, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_unflatten

import pyops
from judging import judge, name_of, results
from suite import on_devices

NAMES = ["conv2d", "linear", "max_pool2d", "scaled_dot_product_attention"]
OPS = {name: next(op for op in op_db if op.name == f"nn.functional.{name}") for name in NAMES}
DTYPED = [
    pytest.param(
        name, dtype, device,
        id=f"{name}-{name_of(dtype)}-{device}", marks=[pytest.mark.cuda] * (device == "cuda"),
    )
    for name, op in OPS.items()
    for device in ("cpu", "cuda")
    for dtype in sorted(op.supported_dtypes(device), key=str)
]  # fmt: skip


def call(function, sample):
    return function(sample.input, *sample.args, **sample.kwargs)


def judge_sample(name, sample):
    """As `suite.judge`, the sample's leaves taken for named arguments."""
    if 0 < sample.kwargs.get("dropout_p", 0) < 1:
        return  # our dropout's pattern is our own: test_attention.py judges it
    leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    arguments = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}

    def taking_leaves(function):
        def run(**leaves):
            x, args, kwargs = tree_unflatten(list(leaves.values()), spec)
            return function(x, *args, **kwargs)

        return run

    ours, native = (taking_leaves(getattr(module, name)) for module in (pyops.functional, F))
    a, b = results(ours, arguments), results(native, arguments)
    same = a.keys() == b.keys() and all(equal(a[n], b[n]) for n in b)
    # For integers there is no wider truth: only equality will do.
    if not same and not sample.input.requires_grad:
        raise AssertionError(f"{a} instead of {b}")
    if not same:
        judge(ours, native, arguments, max_zeros=1.0)


def equal(a, b):
    return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "dtype", "device"), DTYPED)
def test_samples(name, dtype, device):
    """The reference inputs, of which the sample inputs are a part."""
    torch.manual_seed(0)
    op = OPS[name]
    differentiable = dtype in op.supported_backward_dtypes(device)
    count = 0
    for sample in op.reference_inputs(device, dtype, requires_grad=differentiable):
        try:
            judge_sample(name, sample)
        except Exception as error:
            error.add_note(f"sample {count}: {sample.summary()}")
            raise
        count += 1
    assert count > 0


@on_devices
@pytest.mark.parametrize("name", [n for n in NAMES if OPS[n].error_inputs_func])
def test_errors(name, device):
    for case in OPS[name].error_inputs(device):
        with pytest.raises(Exception) as native:
            call(getattr(F, name), case.sample_input)
        with pytest.raises(native.type) as ours:
            call(getattr(pyops.functional, name), case.sample_input)
        assert ours.type is native.type, case.sample_input
