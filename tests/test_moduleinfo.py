"""PyTorch's own samples of the modules we subclass: same state, outputs and gradients."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

import pyops
from judging import assert_passed, convert, name_of, redrawn, results, verdicts, widen
from pyops.numerics import settle
from recurrent import without_cudnn
from suite import on_devices

NAMES = [
    "Conv2d",
    "MaxPool2d",
    "Linear",
    "MultiheadAttention",
    "LSTMCell",
    "LSTM",
    "GRUCell",
    "GRU",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
]
INFOS = {name: next(m for m in module_db if m.module_cls is getattr(nn, name)) for name in NAMES}


def build(namespace, name, sample, state=None):
    """A module without dropout, whose random numbers need not come in native's order."""
    arguments = sample.constructor_input
    module = getattr(namespace, name)(*arguments.args, **arguments.kwargs)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):
            part.dropout = 0.0
    if state is not None:
        module.load_state_dict(state)
    return module


def outcome(module, arguments):
    """Outputs, and gradients of inputs and parameters, by name."""
    leaves, spec = tree_flatten(arguments)
    inputs = {f"input {i}": leaf for i, leaf in enumerate(leaves)}

    def run(**tensors):
        args, kwargs = tree_unflatten([tensors[name] for name in inputs], spec)
        return [t for t in tree_flatten(module(*args, **kwargs))[0] if t is not None]

    return results(run, inputs | dict(module.named_parameters()))


def verdicts_on(name, sample, state, dtype, device, training, draw):
    state = {key: redrawn(value, draw) for key, value in state.items()}
    ours, native, wide = (build(space, name, sample, state) for space in (pyops.nn, nn, nn))
    assert list(ours.state_dict()) == list(native.state_dict())
    assert repr(ours) == repr(native)
    ours, native = (module.to(device, dtype).train(training) for module in (ours, native))
    wide.load_state_dict(native.state_dict())
    wide.to(device).double().train(training)

    leaves, spec = tree_flatten((sample.forward_input.args, sample.forward_input.kwargs))
    leaves = [redrawn(leaf, draw) for leaf in leaves]
    arguments = tree_unflatten(leaves, spec)
    named = convert({str(i): leaf for i, leaf in enumerate(leaves)}, widen)
    widened = tree_unflatten(list(named.values()), spec)
    return verdicts(
        outcome(ours, arguments), outcome(native, arguments), outcome(wide, widened), max_zeros=1.0
    )


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("name", NAMES)
def test_samples(name, mode, dtype, device):
    info, training = INFOS[name], mode == "train"
    samples = info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=mode != "inference", training=training
    )
    assert samples
    recurrent = issubclass(getattr(nn, name), nn.RNNBase)
    for i, sample in enumerate(samples):
        try:
            with (
                without_cudnn() if recurrent else nullcontext(),
                torch.inference_mode(mode == "inference"),
            ):
                state = build(nn, name, sample).state_dict()
                judged = partial(verdicts_on, name, sample, state, dtype, device, training)
                assert_passed(settle(judged))
        except Exception as error:
            error.add_note(f"sample {i}: {sample.constructor_input} {sample.forward_input}")
            raise


@pytest.mark.parametrize("name", [name for name in NAMES if INFOS[name].module_error_inputs_func])
def test_error_samples(name):
    """What torch's class refuses, in its constructor or forward, ours refuses alike."""
    info, options = INFOS[name], {"device": "cpu", "dtype": torch.float32, "requires_grad": False}
    samples = list(info.module_error_inputs_func(info, training=True, **options))
    assert samples
    for sample in samples:
        constructor = sample.module_error_input.constructor_input
        call = sample.module_error_input.forward_input
        errors = []
        for namespace in (nn, pyops.nn):
            with pytest.raises(sample.error_type, match=sample.error_regex) as error:
                module = getattr(namespace, name)(*constructor.args, **constructor.kwargs)
                module(*call.args, **call.kwargs)
            errors.append(error.type)
        assert errors[0] is errors[1]
