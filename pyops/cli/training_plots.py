"""Pictures of training runs, as matplotlib figures."""

from collections.abc import Mapping, Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from pyops.cli.layer_speed import Speed
from pyops.cli.trainer import History

# Okabe and Ito's palette, told apart by colour-blind readers as well.
COLORS = {"torch.nn": "#0072B2", "pyops.nn": "#D55E00"}
STYLES = {"torch.nn": "-", "pyops.nn": "--"}


def curves(runs: Mapping[str, History], steps_per_epoch: int) -> Figure:
    """Loss per step and, where the task has one, accuracy per epoch of runs named by their side."""
    has_accuracy = any(numpy.isfinite(run.held_out_accuracy).any() for run in runs.values())
    figure = Figure(figsize=(10 if has_accuracy else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False)[0]
    for side, run in runs.items():
        style = {"color": COLORS[side], "linestyle": STYLES[side]}
        steps = numpy.arange(1, len(run.loss) + 1) / steps_per_epoch
        epochs = numpy.arange(1, len(run.held_out_loss) + 1)
        axes[0].plot(steps, run.loss, **style, linewidth=1, alpha=0.6, label=f"{side}, training")
        axes[0].plot(epochs, run.held_out_loss, **style, marker="o", label=f"{side}, held out")
        if has_accuracy:
            means = numpy.reshape(run.accuracy, (-1, steps_per_epoch)).mean(1)
            axes[1].plot(epochs, means, **style, marker=".", alpha=0.6, label=f"{side}, training")
            axes[1].plot(
                epochs, run.held_out_accuracy, **style, marker="o", label=f"{side}, held out"
            )
    axes[0].set(ylabel="loss", yscale="log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_locator(NullLocator())
    if has_accuracy:
        axes[1].set(ylabel="accuracy")
        axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.legend(frameon=False)
        _bare(ax)
    return figure


def confusion(matrices: Mapping[str, list[list[int]]]) -> Figure:
    """Confusion matrices of runs named by their side, side by side."""
    figure = Figure(figsize=(5 * len(matrices), 5), layout="constrained")
    row_of_axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for ax, (side, counts) in zip(row_of_axes, matrices.items(), strict=True):
        matrix = numpy.array(counts)
        # Shares of a class, so that the few mistakes show beside the many hits.
        shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in numpy.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                ax.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
        ticks = range(len(matrix))
        ax.set(
            title=side, xlabel="predicted digit", ylabel="true digit", xticks=ticks, yticks=ticks
        )
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def speeds(rows: Sequence[Speed], caption: str) -> Figure:
    """How many times as fast as native each row is, with both times beside its bar."""
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(rows)), layout="constrained")
    ax = figure.subplots()
    places = range(len(rows))
    ratios = [row.ratio for row in rows]
    beyond = [ratio - 1 for ratio in ratios]
    ax.barh(places, beyond, left=1, color=COLORS["pyops.nn"], height=0.7)
    for place, row in zip(places, rows, strict=True):
        text = f"{row.ratio:.2f}×   {_ms(row.native_ms)} → {_ms(row.ours_ms)} ms"
        ax.text(1.01, place, text, va="center", fontsize=9, transform=ax.get_yaxis_transform())
    ax.axvline(1, color=COLORS["torch.nn"], linewidth=1.5)
    ax.set_yticks(places, [f"{row.name}, {row.direction}".strip(", ") for row in rows])
    ax.set_xscale("log", base=2)
    least, most = min(0.7, 0.95 * min(ratios)), max(1.5, 1.05 * max(ratios))
    ax.set_xlim(least, most)
    span = most / least  # as many ticks between powers of two as have room
    between = (1, 1.25, 1.5) if span < 2.5 else (1, 1.5) if span < 8 else (1,)
    ax.xaxis.set_major_locator(LogLocator(base=2, subs=between, numticks=7))
    ax.xaxis.set_major_formatter("{x:g}×")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"speed of pyops.nn in units of torch.nn's ({caption})")
    ax.invert_yaxis()
    _bare(ax)
    return figure


def image_grid(images: Tensor, columns: int = 8) -> Figure:
    """Grey images (N, 1, H, W) in ±1, in rows of `columns`."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns, rows), layout="constrained")
    for ax, image in zip(figure.subplots(rows, columns).flat, images, strict=False):
        ax.imshow(image[0].clamp(-1, 1), cmap="gray", vmin=-1, vmax=1)
        ax.set_axis_off()
    return figure


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
