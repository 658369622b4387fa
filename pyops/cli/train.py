"""`pyops train MODEL`: train one of the example models, on one side."""

import argparse
from dataclasses import asdict

import torch

from pyops import models
from pyops.cli import training_plots
from pyops.cli.files import output_directory, write_json
from pyops.cli.layers import SIDES
from pyops.cli.options import (
    add_run_arguments,
    load_task,
    new_trainer,
    save_figure,
    train,
)
from pyops.cli.tasks import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads."""
    parser.add_argument("model", choices=TASKS, help="transformer reads text, the others digits")
    parser.add_argument("--layers", choices=SIDES, default="pyops", help="default: %(default)s")
    add_run_arguments(parser, epochs="the model's own", out="runs/MODEL")


def run(args: argparse.Namespace) -> int:
    """Train, and leave in --out a checkpoint, the history, its curves and a diffusion's samples."""
    out = output_directory(args.out or f"runs/{args.model}")
    side = args.layers
    trainer = new_trainer(load_task(args.model, args), args.model, side, args)
    train(trainer, args, out)
    write_json(
        out / f"{side}.json",
        {"settings": asdict(trainer.settings), "history": asdict(trainer.history)},
    )
    save_figure(
        out / f"{side}.png",
        training_plots.curves({f"{side}.nn": trainer.history}, trainer.steps_per_epoch),
    )
    if isinstance(trainer.model, models.DDPM):
        torch.manual_seed(args.seed)
        samples = trainer.model.eval().sample(32, 1, 28, 28)
        save_figure(out / f"{side}_samples.png", training_plots.image_grid(samples.cpu()))
    print(f"results in {out}")
    return 0
