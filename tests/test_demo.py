"""`pyops demo` and `pyops train` from the outside: what they print, leave behind and refuse."""

import importlib
import io
import itertools
import json
import resource
import signal
import subprocess
import sys

import pytest
import torch

import pyops
from pyops.cli import main, training_plots
from pyops.cli.layer_speed import Speed
from pyops.cli.tasks import TASKS
from pyops.cli.trainer import History

SHORTEST = ("demo", "--epochs", "1", "--limit", "32", "--batch-size", "8")
QUICK = ("train", "mlp", "--layers", "torch", "--limit", "64")


def _command(*arguments):
    return [sys.executable, "-m", "pyops", *map(str, arguments)]


def _run(*arguments):
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=500)


@pytest.fixture
def refused(capsys):
    """The one line on stderr of a command that must end with exit code 2."""

    def run(*arguments):
        assert main([*map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("pyops: "), lines
        return lines[0]

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    try:
        importlib.import_module("pyops.nn")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}")
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = _run(*SHORTEST, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


def test_demo_prints_its_findings(demo):
    _, text = demo
    for finding in (
        "torch epoch 1/1",
        "pyops epoch 1/1",
        "macro avg",
        "confusion matrix",
        "the two runs agree",
        "training step",
    ):
        assert finding in text


def test_demo_json(demo):
    out, _ = demo
    content = json.loads((out / "demo.json").read_text())
    assert content["agree"] is True
    assert set(content["runs"]) == {"torch.nn", "pyops.nn"}
    for run in content["runs"].values():
        assert len(run["history"]["loss"]) == 4
        assert sum(map(sum, run["confusion"])) == 32
    assert content["first_step"]["loss"]["passed"]
    assert {row["direction"] for row in content["speeds"][:-1]} == {"forward", "forward+backward"}
    assert len(content["speeds"]) == 11
    for row in content["speeds"]:
        assert row["ratio"] == pytest.approx(row["native_ms"] / row["ours_ms"])


@pytest.mark.parametrize("name", ["curves", "confusion", "speed"])
def test_demo_pictures(demo, name):
    picture = (demo[0] / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000


def test_epochs_are_counted_in_whole_numbers():
    one = History([2.0, 1.0], [0.1, 0.2], [1.0], [0.3], [1.0])
    for axes in training_plots.curves({"pyops.nn": one}, 2).axes:
        assert [tick for tick in axes.get_xticks() if tick <= axes.get_xlim()[1]] == [0, 1]


@pytest.mark.parametrize("ratios", [(0.98, 1.1), (0.8, 2.56), (0.5, 3.9), (1.0, 11.0), (0.2, 40)])
def test_labels_of_speeds_do_not_meet(ratios):
    rows = [Speed("64→128 Conv2d + ReLU + MaxPool2d", "forward+backward", r, 1, r) for r in ratios]
    figure = training_plots.speeds(rows, "float32, cpu, 2 threads")
    figure.savefig(io.BytesIO(), dpi=150)  # which lays it out
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    labels = [
        label.get_window_extent()
        for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if low <= tick <= high
    ]
    assert len(labels) >= 3
    assert all(a.x1 + 2 < b.x0 for a, b in itertools.pairwise(labels))


def test_demo_leaves_nothing_half_written(demo):
    assert not [path for path in demo[0].iterdir() if "partial" in path.name]


def test_train_resumes(tmp_path, refused):
    def losses(*arguments):
        result = _run(*QUICK, "--out", tmp_path, *arguments)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / "torch.json").read_text())["history"]["loss"]

    first = losses("--epochs", 2)
    assert len(first) == 2
    assert losses("--epochs", 3, "--resume")[:2] == first
    assert "has seed 0, not 1" in refused(*QUICK, "--out", tmp_path, "--resume", "--seed", 1)


def test_interrupt_leaves_a_checkpoint(tmp_path):
    process = subprocess.Popen(
        _command(*QUICK, "--out", tmp_path, "--epochs", 10**6),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell runs in the background ignores interrupts, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert "epoch 1/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "pyops: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["torch.pt"]
    done = len(torch.load(tmp_path / "torch.pt")["history"]["held_out_loss"])
    result = _run(*QUICK, "--out", tmp_path, "--epochs", done + 1, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"epoch {done + 1}/{done + 1}" in result.stdout.splitlines()[0]


def test_a_checkpoint_that_finds_no_room_is_a_line(tmp_path):
    result = subprocess.run(
        _command(*QUICK, "--out", tmp_path, "--epochs", 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    message = f"pyops: cannot write {tmp_path / 'torch.pt'}: File too large"
    assert result.stderr.splitlines()[-1] == message
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_diffusion_leaves_samples(tmp_path):
    quick = ("--layers", "torch", "--limit", 8, "--batch-size", 8, "--epochs", 1)
    result = _run("train", "diffusion", *quick, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"torch.pt", "torch.json", "torch.png", "torch_samples.png"}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_demo_on_a_gpu(tmp_path, dtype):
    result = _run(*SHORTEST, "--device", "cuda", "--dtype", dtype, "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the two runs agree" in result.stdout
    assert json.loads((tmp_path / "demo.json").read_text())["device"] == "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("model", TASKS)
def test_every_model_trains_on_a_gpu(tmp_path, model):
    quick = ("--device", "cuda", "--limit", 64, "--batch-size", 16, "--epochs", 1)
    result = _run("train", model, *quick, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    losses = json.loads((tmp_path / "pyops.json").read_text())["history"]["loss"]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)


@pytest.mark.parametrize("command", [SHORTEST, QUICK], ids=["demo", "train"])
class TestRefusals:
    def test_missing_data(self, command, tmp_path, refused):
        message = refused(*command, "--out", tmp_path, "--data", tmp_path / "nowhere")
        assert "cannot read the data: no MNIST file train-images-idx3-ubyte" in message

    def test_unwritable_out(self, command, tmp_path, refused):
        (tmp_path / "file").write_text("")
        message = refused(*command, "--out", tmp_path / "file" / "out")
        assert "cannot write to" in message and "Not a directory" in message

    def test_unreadable_checkpoint(self, command, tmp_path, refused):
        (tmp_path / "torch.pt").write_text("not a checkpoint")
        message = refused(*command, "--out", tmp_path, "--resume")
        assert "cannot read the checkpoint" in message and "torch.pt" in message

    def test_absent_device(self, command, tmp_path, refused):
        message = refused(*command, "--out", tmp_path, "--device", "warp")
        assert "cannot use the device warp" in message

    def test_device_of_another_kind(self, command, tmp_path, refused):
        message = refused(*command, "--out", tmp_path, "--device", "meta")
        assert "cannot use the device meta: it must be cpu, or a GPU as in cuda" in message


def test_a_number_that_is_none_is_refused_in_words(capsys):
    with pytest.raises(SystemExit):
        main([*QUICK, "--epochs", "two"])
    assert "argument --epochs: invalid integer value: 'two'" in capsys.readouterr().err


def test_out_is_taken_as_it_is(tmp_path):
    out = tmp_path / "MODELS"
    assert main([*QUICK, "--epochs", "1", "--out", str(out)]) == 0
    assert (out / "torch.json").exists()


def test_missing_extra_names_the_cure(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(name='tqdm')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pyops.cli import main\n"
        f"sys.exit(main({[*map(str, QUICK)]!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == 'pyops: this command needs tqdm: pip install "pyops[tools]"\n'


def test_help_lists_every_command():
    result = _run("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("info", "check", "bench", "train", "demo"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], f"pyops {pyops.__version__}"),
        (["demo", "--help"], "Train a CNN on torch.nn"),
    ],
    ids=["version", "help"],
)
def test_speaks_of_itself(arguments, expected, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert expected in capsys.readouterr().out
