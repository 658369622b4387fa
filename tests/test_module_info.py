"""PyTorch's own samples of each layer, of what it takes and of what it refuses, on ours."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_map

import pyops
from layers import tensors

modules = pytest.importorskip("torch.testing._internal.common_modules")

DTYPE = torch.float64  # semantics, not accuracy: whatever differs is wrong
INFOS = [
    info
    for info in modules.module_db
    if hasattr(pyops.nn, info.module_cls.__name__)
    or info.module_cls in (torch.nn.Transformer, torch.nn.TransformerEncoder)
]
by_class = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of its own samples


def samples(function, info, training):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"device": "cpu", "dtype": DTYPE, "requires_grad": True, "training": training}
        return list(function(info, **options))


def results(module, sample, grad):
    """Outputs and, where there is one to give, the gradients of inputs and parameters."""
    leaves = {}

    def leaf(t):  # one for one: attention looks whether two arguments are the same tensor
        if not isinstance(t, torch.Tensor):
            return t
        return leaves.setdefault(id(t), t.detach().requires_grad_(t.requires_grad))

    call = sample.forward_input
    outputs = tensors(module(*tree_map(leaf, call.args), **tree_map(leaf, call.kwargs)))
    ends = [o for o in outputs if o.requires_grad]
    if not grad or not ends:
        return outputs
    inputs = [*(t for t in leaves.values() if t.requires_grad), *module.parameters()]
    loss = sum(o.sin().sum() for o in ends)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return [*outputs, *gradients]


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "inference"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@by_class
def test_agrees(info, training, grad):
    for sample in samples(info.module_inputs_func, info, training):
        arguments = sample.constructor_input
        native = info.module_cls(*arguments.args, **arguments.kwargs).to(DTYPE).train(training)
        ours = pyops.accelerate(copy.deepcopy(native))
        assert any(type(module).__module__.startswith("pyops.nn") for module in ours.modules())
        with torch.set_grad_enabled(grad):
            got, want = (results(module, sample, grad) for module in (ours, native))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "info",
    [info for info in INFOS if info.module_error_inputs_func],
    ids=lambda info: info.module_cls.__name__,
)
def test_refuses(info, training):
    ours = getattr(pyops.nn, info.module_cls.__name__)
    for case in samples(info.module_error_inputs_func, info, training):
        constructor, call = (
            case.module_error_input.constructor_input,
            case.module_error_input.forward_input,
        )

        def attempt(cls, constructor=constructor, call=call):
            cls(*constructor.args, **constructor.kwargs).to(DTYPE)(*call.args, **call.kwargs)

        with pytest.raises(case.error_type) as native:
            attempt(info.module_cls)
        with pytest.raises(case.error_type) as error:
            attempt(ours)
        assert error.type is native.type
