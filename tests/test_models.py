"""The example models: shapes, learning, and the same answers on both layer namespaces."""

from contextlib import nullcontext
from statistics import median

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pyops
from pyops import models
from recurrent import without_cudnn
from suite import on_devices


def _batch(name, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, 28, 28, generator=generator)
    text = torch.randint(20, (8, 25), generator=generator)
    batch = {
        "mlp": (images,),
        "cnn": (torch.randn(8, 3, 16, 16, generator=generator),),
        "lstm": (images[:, 0],),
        "transformer": (text[:, :12], text[:, 12:]),
        "diffusion": (images[..., 6:22, 6:22], torch.randint(200, (8,), generator=generator)),
    }[name]
    return tuple(t.to(device) for t in batch)


MAKE = {
    "mlp": models.mlp,
    "cnn": lambda nn: models.cnn(nn, size=16),
    "lstm": models.LSTMClassifier,
    "transformer": lambda nn: models.Seq2SeqTransformer(nn, vocabulary=20, dim=32, feedforward=64),
    "diffusion": lambda nn: models.DDPM(nn, channels=8),
}
SHAPES = {
    "mlp": (8, 10),
    "cnn": (8, 10),
    "lstm": (8, 10),
    "transformer": (8, 13, 20),
    "diffusion": (8, 1, 16, 16),
}
every_model = pytest.mark.parametrize("name", MAKE)


def _model(name, layers=nn):
    torch.manual_seed(0)
    return MAKE[name](layers)


def _loss(name, model, batch):
    output = model(*batch)
    if name == "diffusion":
        return model.loss(batch[0])
    labels = torch.arange(output[..., 0].numel(), device=output.device) % 10
    return cross_entropy(output.flatten(0, -2), labels)


@every_model
def test_shapes(name):
    model, batch = _model(name), _batch(name)
    output = model(*batch)
    assert output.shape == SHAPES[name]
    assert output.isfinite().all()
    _loss(name, model, batch).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@on_devices
@every_model
def test_learns_a_batch(name, device):
    model, batch = _model(name).to(device).eval(), _batch(name, device=device)
    model = pyops.accelerate(model) if device == "cuda" else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        torch.manual_seed(0)  # the diffusion's timesteps and noise
        optimizer.zero_grad()
        loss = _loss(name, model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.isfinite(torch.tensor(losses)))


def test_transformer_cannot_see_the_future():
    model, (source, target) = _model("transformer").eval(), _batch("transformer")
    changed = target.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    with torch.no_grad():
        before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_transformer_reads_the_source():
    model, (source, target) = _model("transformer").eval(), _batch("transformer")
    with torch.no_grad():
        assert not torch.allclose(model(source, target), model((source + 1) % 20, target))


def test_diffusion_ends_in_noise():
    alpha_bar = models.DDPM(nn, steps=50).alpha_bar
    assert 1 > alpha_bar[0] > 0.99
    assert alpha_bar[-1] < 1e-4


def test_diffusion_samples_are_what_its_predictor_leaves():
    """With a perfect predictor for the all-zero image, every sample is that image."""
    model = models.DDPM(nn, steps=50)

    class Perfect(nn.Module):
        def forward(self, x, t):
            return x / (1 - model.alpha_bar[t][:, None, None, None]).sqrt()

    model.predictor = Perfect()
    torch.manual_seed(0)
    assert model.sample(4, 1, 8, 8).abs().max() < 1e-4


@on_devices
@every_model
@pytest.mark.parametrize("accelerate", [False, True], ids=["modules", "accelerated"])
def test_both_namespaces_agree(name, accelerate, device):
    """Output and gradients are as close to float64 as native's.

    A ReLU or pooling decision that hangs on the last bit moves whole entries of a gradient, on
    either side, so the median over five batches is judged.
    """
    native, ours, exact = _model(name).eval(), _model(name, pyops.nn).eval(), _model(name).eval()
    ours.load_state_dict(native.state_dict())
    exact.double()
    if accelerate:
        ours = pyops.accelerate(ours)
    assert list(ours.state_dict()) == list(native.state_dict())
    models = [model.to(device) for model in (exact, native, ours)]
    with without_cudnn() if name == "lstm" else nullcontext():
        errors = [_errors(_batch(name, seed, device), *models) for seed in range(5)]
    for key in errors[0]:
        by_native, by_ours = (median(e[key][side] for e in errors) for side in (0, 1))
        assert by_ours <= 1.5 * by_native + 3e-7, (key, by_native, by_ours)


@pytest.mark.cuda
@every_model
def test_a_gpu_gives_what_the_cpu_does(name):
    """Output and gradients of two examples, in float64: no decision hangs on a rounding."""

    def results(device):
        model = _model(name, pyops.nn).eval().double().to(device)
        batch = (t[:2] for t in _batch(name, device=device))
        return _results(model, tuple(t.double() if t.is_floating_point() else t for t in batch))

    right, ours = results("cpu"), results("cuda")
    for key, value in right.items():
        noise = 1e-9 * value.abs().max().item()
        torch.testing.assert_close(ours[key].cpu(), value, rtol=1e-9, atol=noise)


def _errors(batch, exact, *others):
    """Relative errors of `others`, by the name of what they computed, against `exact`."""
    wide = tuple(t.double() if t.is_floating_point() else t for t in batch)
    reference = _results(exact, wide)
    results = [_results(model, batch) for model in others]
    return {
        key: [((r[key] - ref).norm() / ref.norm()).item() for r in results]
        for key, ref in reference.items()
    }


def _results(model, batch):
    """Output, and the gradient of a random combination of it by every parameter."""
    output = model(*batch)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output, parameters, weight.to(output))
    return {"output": output.detach(), **dict(zip(names, gradients, strict=True))}
