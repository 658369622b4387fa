"""The Sequential that fuses its neighbours."""

import copy

import pytest
import torch
from torch import nn

import pyops
from suite import on_devices
from test_accelerate import images

FUNCTIONS = [
    *("conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "max_pool2d"),
    *("linear", "linear_relu"),
]


@pytest.fixture
def called(monkeypatch):
    """The functions of pyops.functional as they are called."""
    names = []

    def spy(name, function):
        def call(*args, **kwargs):
            names.append(name)
            return function(*args, **kwargs)

        return call

    for name in FUNCTIONS:
        monkeypatch.setattr(pyops.functional, name, spy(name, getattr(pyops.functional, name)))
    return names


CONV = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)]
FUSIONS = [
    (CONV, ["conv2d_relu_max_pool2d"]),
    (CONV[:2], ["conv2d_relu"]),
    ([*CONV[:2], nn.Identity(), CONV[2]], ["conv2d_relu", "max_pool2d"]),
    ([CONV[0], CONV[2], CONV[1]], ["conv2d", "max_pool2d"]),
    ([CONV[0], nn.ReLU6()], ["conv2d"]),
    ([pyops.nn.ConvReLU2d(3, 4, 3), CONV[2]], ["conv2d_relu_max_pool2d"]),
    ([pyops.nn.ConvReLU2d(3, 4, 3), CONV[1]], ["conv2d_relu"]),
    ([nn.Linear(9, 9), nn.ReLU(inplace=True), nn.Linear(9, 9)], ["linear_relu", "linear"]),
    ([nn.Linear(9, 9), nn.Dropout(0.0), nn.ReLU()], ["linear"]),
    ([nn.Sequential(nn.Linear(9, 9)), nn.ReLU()], ["linear"]),
    (
        [
            nn.Conv2d(3, 4, (3, 2), 2, 1, padding_mode="circular"),
            CONV[1],
            nn.MaxPool2d((3, 2), 2, 1),
        ],
        ["conv2d_relu_max_pool2d"],
    ),
    ([*CONV[:2], nn.MaxPool2d(2, ceil_mode=True)], ["conv2d_relu_max_pool2d"]),
    ([], []),
]


@on_devices
@pytest.mark.parametrize(("modules", "functions"), FUSIONS)
def test_fuses_neighbours(modules, functions, called, device):
    native = nn.Sequential(*copy.deepcopy(modules)).to(device).double()
    x = images(2, 3, 9, 9, device=device).double()
    ours = pyops.accelerate(copy.deepcopy(native))
    called.clear()
    y = ours(x.clone())
    assert called == functions
    torch.testing.assert_close(y, pyops.restore(native)(x.clone()), rtol=1e-9, atol=1e-12)


def test_return_indices_keeps_the_pooling_apart(called):
    model = pyops.accelerate(nn.Sequential(*CONV[:2], nn.MaxPool2d(2, return_indices=True)))
    output, indices = model(images(2, 3, 9, 9))
    assert called == ["conv2d_relu", "max_pool2d"]
    assert output.shape == indices.shape


OBSERVERS = {
    "forward hook": lambda m, see: m.register_forward_hook(lambda *_: see()),
    "forward pre-hook": lambda m, see: m.register_forward_pre_hook(lambda *_: see()),
    "backward hook": lambda m, see: m.register_full_backward_hook(lambda *_: see()),
    "backward pre-hook": lambda m, see: m.register_full_backward_pre_hook(lambda *_: see()),
    "global hook": lambda m, see: nn.modules.module.register_module_forward_hook(
        lambda module, *_: see() if module is m else None
    ),
}


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_observer_sees_its_module_run(observer, position, called):
    """Also one that comes after accelerate; once it is gone the neighbours fuse again."""
    model, seen = pyops.accelerate(nn.Sequential(*copy.deepcopy(CONV))), []
    handle = OBSERVERS[observer](model[position], lambda: seen.append(1))
    model(images(2, 3, 9, 9).requires_grad_()).sum().backward()
    assert len(seen) == 1
    assert "conv2d_relu_max_pool2d" not in called
    handle.remove()
    called.clear()
    model(images(2, 3, 9, 9))
    assert (called, len(seen)) == (["conv2d_relu_max_pool2d"], 1)


def test_an_overridden_forward_is_called():
    model = pyops.accelerate(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model[1].forward = lambda x: x.sign()
    assert set(model(images(9, 3)).unique().tolist()) == {-1.0, 1.0}


PATCHES = {
    "a call": (CONV, 1, "_call_impl"),
    "a pooling": (CONV, 2, "forward"),
    "what a convolution's forward calls": (CONV, 0, "_conv_forward"),
    "the same of a fused one": (
        [pyops.nn.ConvReLU2d(3, 4, 3), nn.MaxPool2d(2)],
        0,
        "_conv_forward",
    ),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patched_step_of_a_module_is_taken(patch):
    """As for convolutions that wrap around one axis alone."""
    modules, position, step = PATCHES[patch]
    native = nn.Sequential(*copy.deepcopy(modules))
    ours, x = pyops.accelerate(copy.deepcopy(native)), images(2, 3, 9, 9)
    for model in (native, ours):
        original = getattr(model[position], step)
        setattr(model[position], step, lambda *args, call=original: call(*args) - 1)
    torch.testing.assert_close(ours(x), native(x))


@pytest.mark.parametrize("modules", [CONV, [nn.Linear(9, 9), nn.ReLU()]], ids=["conv", "linear"])
def test_a_patched_class_is_respected(modules, monkeypatch):
    """As for guided backpropagation, which wants a ReLU of its own."""
    model = pyops.accelerate(nn.Sequential(*copy.deepcopy(modules)))
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: -x.abs())
    assert model(images(2, 3, 9, 9)).max() <= 0


SUMS = {
    "a + b": lambda a, b: a + b,
    "a * 2": lambda a, b: a * 2,
    "2 * a": lambda a, b: 2 * a,
    "a += b": lambda a, b: a.__iadd__(b),
    "a *= 2": lambda a, b: a.__imul__(2),
    "a[:2]": lambda a, b: a[:2],
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sequential_made_of_others_fuses_too(name, called):
    native = [nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)) for _ in range(2)]
    ours = [pyops.accelerate(copy.deepcopy(model)) for model in native]
    theirs, sum_ = SUMS[name](*native), SUMS[name](*ours)
    assert type(sum_) is pyops.nn.Sequential
    assert repr(sum_) == repr(theirs)
    torch.testing.assert_close(sum_(images(2, 9)), theirs(images(2, 9)))
    assert "linear_relu" in called
    for wrong in (lambda a: a + a[0], lambda a: a * 0, lambda a: a * 1.5):
        errors = []
        for model in (native[0], ours[0]):
            with pytest.raises((TypeError, ValueError)) as error:
                wrong(model)
            errors.append(error.type)
        assert errors[0] is errors[1]


def test_parts_of_a_fused_sequential():
    """Indexing, slicing, iterating and other owners see every module as it was."""
    native = nn.Sequential(*copy.deepcopy(CONV))
    model, x = pyops.accelerate(copy.deepcopy(native)), images(2, 3, 9, 9)
    for length in range(4):
        torch.testing.assert_close(model[:length](x), native[:length](x))
    y = x
    for ours, theirs in zip(model, native, strict=True):
        torch.testing.assert_close(ours(y), theirs(y))
        y = theirs(y)
    other = nn.Sequential(model[0], nn.Tanh())
    torch.testing.assert_close(other(x), native[0](x).tanh())
    model[1] = nn.Tanh()
    torch.testing.assert_close(model(x), native[2](native[0](x).tanh()))
