"""LSTM and GRU over sequences, batched and one at a time, and their cells."""

from functools import partial

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench

SEQUENCES = {
    "t100.b32.h256": dict(t=100, b=32, i=256, h=256),
    "t100.b1.h256": dict(t=100, b=1, i=256, h=256),
    "t28.b128.h128.layers2": dict(t=28, b=128, i=28, h=128, layers=2, batch_first=True),
}
CELLS = {
    "b32.h256": dict(b=32, i=256, h=256),
    "b1.h256": dict(b=1, i=256, h=256),
}


def flops(gates: int, s: Shape) -> float:
    """The products with both weight matrices of every layer, at every step."""
    widths = [s["i"]] + [s["h"]] * (s.get("layers", 1) - 1)
    rows = s.get("t", 1) * s["b"]
    return float(sum(2 * rows * gates * s["h"] * (width + s["h"]) for width in widths))


BENCHES = [
    Bench(OPS["lstm"], SEQUENCES, partial(flops, 4)),
    Bench(OPS["gru"], SEQUENCES, partial(flops, 3)),
    Bench(OPS["lstm_cell"], CELLS, partial(flops, 4)),
    Bench(OPS["gru_cell"], CELLS, partial(flops, 3)),
]

if __name__ == "__main__":
    main(BENCHES)
