"""The shared case list: every case must be able to tell a right op from a wrong one."""

import pytest
import torch

from pyops.cases import OPS
from pyops.certificate import outputs_and_gradients, random_like, reference_of, verify
from pyops.numerics import DRAWS, MAX_ZEROS, MOSTLY_ZEROS, vacuous

CASES = [
    pytest.param(op, s, id=f"{op.name}-{n}") for op in OPS.values() for n, s in op.shapes.items()
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "shape"), CASES)
def test_native_meets_the_rule_it_sets(op, shape, dtype):
    verdicts = verify(op, op.inputs(shape, dtype), shape, function=op.native)
    assert {name: v.reason for name, v in verdicts.items() if not v.passed} == {}
    assert sum(name.startswith("grad_") for name in verdicts) == len(
        op.inputs(shape, dtype).tensors
    )


@pytest.mark.parametrize(("op", "shape"), CASES)
def test_every_draw_proves_something(op, shape):
    """Where one does not pass the rule, all of them are asked."""
    most = MOSTLY_ZEROS if op.selects else MAX_ZEROS
    for draw in range(DRAWS):
        results = reference_of(op, op.inputs(shape, torch.float32, draw=draw)).results
        assert {name: why for name, t in results.items() if (why := vacuous(t, most))} == {}, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "shape"), CASES)
def test_a_skipped_tail_is_seen(op, shape, dtype):
    """The last column of the first output is left out, forward and backward."""

    def skipping(*args, **options):
        outputs = op.native(*args, **options)
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        keep = torch.ones_like(first)
        keep[..., -1] = 0
        first = first * keep
        return first if isinstance(outputs, torch.Tensor) else (first, *outputs[1:])

    verdicts = verify(op, op.inputs(shape, dtype), shape, function=skipping)
    failed = {name for name, v in verdicts.items() if not v.passed}
    assert "output0" in failed
    assert any(name.startswith("grad_") for name in failed)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kinked], ids=lambda op: op.name)
def test_lattice_sums_are_exact(op):
    for shape in op.shapes.values():
        inputs = op.inputs(shape, torch.float32, lattice=True)
        outputs = op.run(op.native, inputs)
        grads = tuple(g.round() for g in random_like(outputs))
        narrow = outputs_and_gradients(op, op.native, inputs, grads)
        wide = outputs_and_gradients(
            op, op.native, inputs.map(torch.Tensor.double), tuple(g.double() for g in grads)
        )
        for name in wide:
            assert torch.equal(narrow[name].double(), wide[name]), name


def test_inputs_are_the_same_in_every_run():
    op = OPS["conv2d"]
    first, second = (op.inputs(op.shapes["odd"], torch.float32).tensors for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
