"""Training and its checkpoints: what is random is seeded, and no interruption can be noticed."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from pyops import models
from pyops.cli import UserError
from pyops.cli.files import output_directory, replace_file, write_json
from pyops.cli.tasks import TASKS, Task, make_task
from pyops.cli.trainer import Settings, Trainer
from suite import on_devices

SETTINGS = Settings("mlp", "torch", batch_size=8, dtype="float32", seed=5, limit=None, data=None)


def _noisy(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator).to(x)


def _make(nn):
    model = models.mlp(nn, features=6, hidden=8, classes=2)
    model.append(torch.nn.Dropout(0.1))
    return model


def _outcome(model, batch):
    x, labels = batch
    scores = model(x)
    accuracy = (scores.argmax(1) == labels).float().mean()
    return torch.nn.functional.cross_entropy(scores, labels), accuracy


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    part = x, (x[:, 0] > 0).long()
    train, test = (tuple(t[s] for t in part) for s in (slice(40), slice(40, None)))
    return Task(_make, train, test, _noisy, lambda x: x, _outcome, epochs=2)


def _trainer(task, settings=SETTINGS, device="cpu"):
    return Trainer(task, settings, torch.device(device))


def _state(trainer):
    history = replace(trainer.history, seconds=[])
    return history, {k: v.tolist() for k, v in trainer.model.state_dict().items()}


@pytest.fixture
def whole_run(task, tmp_path):
    trainer = _trainer(task)
    trainer.fit(3, tmp_path / "whole.pt")
    return trainer


def test_same_seed_same_run(task, whole_run, tmp_path):
    again, other = _trainer(task), _trainer(task, replace(SETTINGS, seed=6))
    again.fit(3, tmp_path / "again.pt")
    other.fit(3, tmp_path / "other.pt")
    assert _state(again) == _state(whole_run)
    assert _state(other) != _state(whole_run)


def test_history_counts_steps_and_epochs(whole_run):
    history = whole_run.history
    assert len(history.loss) == len(history.accuracy) == 3 * 5
    assert len(history.held_out_loss) == len(history.held_out_accuracy) == len(history.seconds) == 3
    assert history.held_out_loss[-1] < history.held_out_loss[0]


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_interrupted_run_resumes_as_if_nothing_happened(task, whole_run, tmp_path, stop):
    calls = []

    def interrupted(model, batch):
        calls.append(model.training)
        if sum(calls) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return _outcome(model, batch)

    checkpoint = tmp_path / "run.pt"
    trainer = _trainer(replace(task, outcome=interrupted))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(3, checkpoint)
    assert len(trainer.history.loss) == stop
    resumed = _trainer(task)
    resumed.resume(checkpoint)
    resumed.fit(3, checkpoint)
    assert _state(resumed) == _state(whole_run)


def test_more_epochs_continue_a_finished_run(task, whole_run, tmp_path):
    trainer = _trainer(task)
    trainer.fit(2, tmp_path / "run.pt")
    trainer = _trainer(task)
    trainer.resume(tmp_path / "run.pt")
    trainer.fit(3, tmp_path / "run.pt")
    assert _state(trainer) == _state(whole_run)


@on_devices
def test_a_checkpoint_is_of_no_device(task, tmp_path, device):
    """What the optimizer counts stays on the CPU, or every step would wait for the GPU."""
    whole, trainer, resumed = (_trainer(task, device=device) for _ in range(3))
    whole.fit(2, tmp_path / "whole.pt")
    trainer.fit(1, tmp_path / "run.pt")
    resumed.resume(tmp_path / "run.pt")
    for state in resumed.optimizer.state.values():
        assert (state["step"].device.type, state["exp_avg"].device.type) == ("cpu", device)
    resumed.fit(2, tmp_path / "run.pt")
    assert _state(resumed) == _state(whole)


def test_checkpoint_of_other_settings_is_refused(task, whole_run, tmp_path):
    trainer = _trainer(task, replace(SETTINGS, seed=6))
    before = _state(trainer)
    with pytest.raises(UserError, match=r"whole\.pt has seed 5, not 6$"):
        trainer.resume(tmp_path / "whole.pt")
    assert _state(trainer) == before


def test_checkpoint_of_another_version_is_refused(task, whole_run, tmp_path):
    state = torch.load(tmp_path / "whole.pt")
    for strange in ({**state, "settings": {**state["settings"], "new": 1}}, {"model": {}}):
        torch.save(strange, tmp_path / "strange.pt")
        with pytest.raises(UserError, match=r"strange\.pt: it is damaged or of another version"):
            _trainer(task).resume(tmp_path / "strange.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_checkpoint(task, whole_run, tmp_path, content):
    checkpoint = tmp_path / "whole.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="cannot read the checkpoint") as caught:
        _trainer(task).resume(checkpoint)
    assert "\n" not in str(caught.value)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        replace_file(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"rows": [{"accuracy": (0.5, math.nan)}], "allowed": math.inf})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content == {"rows": [{"accuracy": [0.5, None]}], "allowed": None}


def test_output_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        output_directory(tmp_path / "file" / "out")


def test_bfloat16_trains_by_autocast(task, tmp_path):
    trainer = _trainer(task, replace(SETTINGS, dtype="bfloat16"))
    trainer.fit(3, tmp_path / "run.pt")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.history.loss[-1] < trainer.history.loss[0]
    with trainer.autocast():
        assert trainer.model(task.train[0][:2]).dtype == torch.bfloat16


def test_last_incomplete_batch_is_left_out(task):
    trainer = _trainer(task, replace(SETTINGS, batch_size=16))
    assert trainer.steps_per_epoch == 2
    seen = torch.cat([trainer.batch(step)[0] for step in range(2)])
    assert len(seen) == 32
    tiny = _trainer(task, replace(SETTINGS, batch_size=64))
    assert tiny.steps_per_epoch == 1 and len(tiny.batch(0)[0]) == 40


@on_devices
@pytest.mark.parametrize("name", TASKS)
def test_every_task_takes_a_step(name, device):
    task = make_task(name, None, seed=0, limit=8)
    assert len(task.train[0]) == len(task.test[0]) == 8
    side = "pyops" if device == "cuda" else "torch"
    trainer = _trainer(task, replace(SETTINGS, model=name, side=side), device)
    loss, accuracy = trainer.step(trainer.batch(0), 0)
    assert torch.isfinite(torch.tensor(loss))
    assert name == "diffusion" or 0 <= accuracy <= 1
    assert torch.isfinite(torch.tensor(trainer.evaluate()[0]))


def test_bad_data_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot read the data: no MNIST file"):
        make_task("mlp", str(tmp_path), seed=0, limit=None)
