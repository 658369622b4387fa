"""accelerate and restore on whole models."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import pyops
from judging import assert_accurate
from suite import on_devices


class Net(nn.Module):
    """A small network of most kinds, with one module in two places and one tied weight."""

    def __init__(self):
        super().__init__()
        relu = nn.ReLU()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), relu, nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), relu
        )
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True), 2
        )
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 5))
        self.tied = nn.Linear(5, 8, bias=False)
        self.tied.weight = self.head[0].weight

    def forward(self, x):
        x = self.features(x).flatten(2).transpose(1, 2)
        x = self.rnn(self.encoder(x))[0].mean(1)
        return self.head(x) @ self.tied.weight.t()


def network():
    torch.manual_seed(0)
    return Net()


def gradients(model, x):
    y = model(x)
    values = torch.autograd.grad(y.pow(2).sum(), list(model.parameters()))
    named = zip(dict(model.named_parameters()), values, strict=True)
    return {"output": y.detach(), **{f"grad_{n}": g for n, g in named}}


def images(*shape, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device)


def classes(model):
    return [type(module) for module in model.modules()]


@on_devices
def test_results_agree(device):
    x, native = images(2, 3, 12, 12, device=device), network().to(device)
    wide = gradients(copy.deepcopy(native).double(), x.double())
    theirs = gradients(native, x)
    ours = gradients(pyops.accelerate(native), x)
    assert_accurate(ours, theirs, wide, max_zeros=0.9, kinks=True)


def test_changes_nothing_but_classes():
    model = network()
    before = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    text, modules, mode = repr(model), list(model.modules()), model.eval().training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert pyops.accelerate(model) is model
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == before
    assert repr(model) == text
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert model.training is mode
    assert model.tied.weight is model.head[0].weight
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    ours = {cls.__name__ for cls in classes(model) if cls.__module__.startswith("pyops.nn")}
    assert ours == {
        *("Conv2d", "MaxPool2d", "Linear", "LSTM", "Sequential"),
        *("MultiheadAttention", "TransformerEncoderLayer"),
    }


def test_restore_undoes_it():
    model = network()
    before = classes(model)
    assert pyops.restore(pyops.accelerate(model)) is model
    assert classes(model) == before


@pytest.mark.parametrize("model", [nn.Linear, [nn.Linear(2, 2)]], ids=["class", "list"])
@pytest.mark.parametrize("function", [pyops.accelerate, pyops.restore])
def test_what_is_no_module_is_refused(function, model):
    given = "the class Linear" if model is nn.Linear else "list"
    message = f"{function.__name__}: model must be a torch.nn.Module, got {given}$"
    with pytest.raises(TypeError, match=message):
        function(model)


def test_twice_is_once():
    model = pyops.accelerate(network())
    before = classes(model)
    assert classes(pyops.accelerate(model)) == before
    model.extra = nn.Linear(5, 2)
    assert type(pyops.accelerate(model).extra) is pyops.nn.Linear


def test_copies_and_checkpoints():
    x, model = images(2, 3, 12, 12), pyops.accelerate(network())
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pyops.accelerate(fresh)):
        assert classes(other) == classes(model)
        assert torch.equal(other(x), model(x))
    assert classes(pyops.restore(copy.deepcopy(model))) == classes(network())


@on_devices
def test_trains_with_the_optimizer_it_had(device):
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pyops.accelerate(model)
    before = model.head[0].weight.clone()
    model(images(2, 3, 12, 12, device=device)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(model.head[0].weight, before)


@on_devices
@pytest.mark.parametrize("grad", [True, False], ids=["train", "inference"])
def test_whole_transformer(grad, device):
    """torch.nn's own containers around our layers; at inference they hand over nested tensors."""
    torch.manual_seed(0)
    native = nn.Transformer(8, 2, 2, 2, 16, 0.0, batch_first=True).train(grad)
    native = native.to(device).double()
    ours = pyops.accelerate(copy.deepcopy(native))
    source, target = (images(2, n, 8, device=device).double() for n in (5, 4))
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]], device=device)
    causal = nn.Transformer.generate_square_subsequent_mask(4, device=device).double()
    with torch.set_grad_enabled(grad):
        results = [
            model(
                source,
                target,
                tgt_mask=causal,
                src_key_padding_mask=padding,
                memory_key_padding_mask=padding,
            )
            for model in (ours, native)
        ]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_operations_count_as_before():
    """Fused or not, in both directions, by torch.utils.flop_counter."""
    model = network().features.append(nn.Flatten()).append(nn.Linear(96, 2))
    x = images(2, 3, 12, 12)
    counts = []
    for accelerated in (False, True):
        with FlopCounterMode(display=False) as counter:
            (pyops.accelerate(model) if accelerated else model)(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_leaves_derived_classes_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    model = Twice(Scaled(3, 3), nn.ReLU())
    x = images(2, 3)
    want = model(x)
    assert classes(pyops.accelerate(model)) == [Twice, Scaled, nn.ReLU]
    assert torch.equal(model(x), want)


def test_lazy_modules_when_they_are_ready():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(2, 1))
    assert classes(pyops.accelerate(model))[1:] == [nn.LazyLinear, nn.LazyConv2d]
    model[0](images(2, 3))
    assert classes(pyops.accelerate(model))[1:] == [pyops.nn.Linear, nn.LazyConv2d]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
def test_quantized_modules_are_left_alone():
    linear = nn.Sequential(nn.Linear(4, 4))
    model = torch.ao.quantization.quantize_dynamic(linear, {nn.Linear})
    before = classes(model)
    assert classes(pyops.accelerate(model))[1:] == before[1:]
    assert model(images(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("first", ["accelerate", "parametrize"])
def test_parametrized(first):
    x, native = images(2, 5), nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    model = copy.deepcopy(native)
    if first == "accelerate":
        pyops.accelerate(model)
    for m in (native, model):
        parametrizations.spectral_norm(m.eval()[0])
        m[0].bias.data.fill_(0.1)
    pyops.accelerate(model)
    with torch.no_grad():
        for m in (native, model):
            m[0].parametrizations.weight[0]._u.copy_(torch.ones(5) / 5**0.5)
            m[0].parametrizations.weight[0]._v.copy_(torch.ones(5) / 5**0.5)
    torch.testing.assert_close(model(x), native(x))
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(pyops.accelerate(model)[0]) is pyops.nn.Linear


def test_pruned():
    x, model = images(3, 5), nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.5)
    want = model(x)
    torch.testing.assert_close(pyops.accelerate(model)(x), want)
    prune.remove(model[0], "weight")
    torch.testing.assert_close(model(x), want)
