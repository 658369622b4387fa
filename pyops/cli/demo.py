"""`pyops demo`: the reference CNN on handwritten digits, on torch.nn and on pyops.nn.

Both runs start from the same parameters and see the same batches and dropout masks. The demo
reports how well the model does, whether the two runs agree, and how fast each side is.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas
import torch
from sklearn.metrics import classification_report, confusion_matrix
from torch import Tensor

from pyops.cli import training_plots
from pyops.cli.agreement import Difference, differences, first_step
from pyops.cli.files import output_directory, write_json
from pyops.cli.layer_speed import Speed, layer_speeds, step_speed
from pyops.cli.layers import SIDES
from pyops.cli.options import (
    add_run_arguments,
    load_task,
    new_trainer,
    save_figure,
    train,
)
from pyops.numerics import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads."""
    add_run_arguments(parser, epochs="2, a few minutes on two cores", out="runs/demo")
    parser.epilog = "The shortest form: pyops demo --epochs 1 --limit 32 --batch-size 8"


def run(args: argparse.Namespace) -> int:
    """Train both sides and compare them; 1 when they do not agree."""
    out = output_directory(args.out or "runs/demo")
    task = load_task("cnn", args)
    trainers = {f"{side}.nn": new_trainer(task, "cnn", side, args) for side in SIDES}
    native, ours = trainers.values()
    threads = torch.get_num_threads()
    machine = f"{args.dtype}, {args.device}, {threads} thread{'s' * (threads > 1)}"
    print(f"{len(task.train[0])} digits to train on, {len(task.test[0])} held out; {machine}")

    verdicts = first_step(native, ours)
    for trainer in trainers.values():
        train(trainer, args, out)
    predicted = {name: trainer.predict().argmax(1) for name, trainer in trainers.items()}
    differing = differences(native, ours)
    agree = all(v.passed for v in verdicts.values()) and all(d.passed for d in differing)
    labels = task.test[1]
    _print_quality("pyops.nn", labels, predicted["pyops.nn"])
    _print_agreement(verdicts, differing, agree)

    speeds = [*layer_speeds(native), step_speed(native, ours)]
    _print_speeds(speeds)
    quality = {name: _quality(labels, digits) for name, digits in predicted.items()}
    figures = {
        "curves": training_plots.curves(
            {name: trainer.history for name, trainer in trainers.items()}, native.steps_per_epoch
        ),
        "confusion": training_plots.confusion({n: q["confusion"] for n, q in quality.items()}),
        "speed": training_plots.speeds(speeds, machine),
    }
    for name, figure in figures.items():
        save_figure(out / f"{name}.png", figure)
    content = {
        "torch": torch.__version__,
        "threads": threads,
        "device": args.device,
        "steps_per_epoch": native.steps_per_epoch,
        "runs": {
            name: {"settings": asdict(t.settings), "history": asdict(t.history), **quality[name]}
            for name, t in trainers.items()
        },
        "first_step": {name: _with_passed(verdict) for name, verdict in verdicts.items()},
        "differences": [_with_passed(row) for row in differing],
        "agree": agree,
        "speeds": [asdict(speed) for speed in speeds],
    }
    write_json(out / "demo.json", content)
    print(f"\nresults in {out}")
    return 0 if agree else 1


def _quality(labels: Tensor, predicted: Tensor) -> dict[str, Any]:
    return {
        "report": classification_report(labels, predicted, output_dict=True, zero_division=0),
        "confusion": confusion_matrix(labels, predicted, labels=range(10)).tolist(),
    }


def _with_passed(row: Verdict | Difference) -> dict[str, Any]:
    return {**asdict(row), "passed": row.passed}


def _print_quality(name: str, labels: Tensor, predicted: Tensor) -> None:
    print(f"\n{name} on the held-out digits")
    print(classification_report(labels, predicted, digits=3, zero_division=0))
    matrix = pandas.DataFrame(confusion_matrix(labels, predicted, labels=range(10)))
    print("confusion matrix (rows: true digit, columns: predicted digit)")
    print(matrix.to_string())


def _print_agreement(
    verdicts: Mapping[str, Verdict], differing: Sequence[Difference], agree: bool
) -> None:
    print("\nfirst step: relative error (L2) of the loss and its gradients against float64")
    rows = {
        name: {
            "torch.nn": v.native_l2,
            "pyops.nn": v.err_l2,
            "allowed": v.allowed_l2,
            "": v.reason or "ok",
        }
        for name, v in verdicts.items()
    }
    print(pandas.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.1e}".format))
    print("\nwhole runs")
    results = pandas.DataFrame(
        {
            "torch.nn": [row.native for row in differing],
            "pyops.nn": [row.ours for row in differing],
            "allowed difference": [row.allowed for row in differing],
            "": ["ok" if row.passed else "too far apart" for row in differing],
        },
        index=[row.name for row in differing],
    )
    print(results.to_string(float_format="{:.4f}".format))
    print(f"\nthe two runs {'agree' if agree else 'DO NOT AGREE'}")


def _print_speeds(speeds: Sequence[Speed]) -> None:
    print("\nspeed, median of interleaved pairs (ratio over 1: pyops is faster)")
    table = pandas.DataFrame([asdict(speed) for speed in speeds])
    table = table.rename(columns={"native_ms": "torch.nn, ms", "ours_ms": "pyops.nn, ms"})
    print(table.to_string(index=False, float_format="{:.3f}".format))
