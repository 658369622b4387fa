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
ON_GPU: dict[str, Shape] = {
    "t1024.b16.h768": dict(t=1024, b=16, i=768, h=768),
    "t100.b32.h256": dict(t=100, b=32, i=256, h=256),
    "t512.b10.h256.layers6": dict(t=512, b=10, i=256, h=256, layers=6),
    "t512.b10.h256.packed": dict(t=512, b=10, i=256, h=256, lengths=tuple(range(512, 12, -50))),
    "t100.b1.h256": dict(t=100, b=1, i=256, h=256),
}
CELLS = {
    "b32.h256": dict(b=32, i=256, h=256),
    "b1.h256": dict(b=1, i=256, h=256),
}
CELLS_ON_GPU = {"b1024.h1024": dict(b=1024, i=1024, h=1024), **CELLS}


def flops(gates: int, s: Shape) -> float:
    """The products with both weight matrices of every layer, at every step."""
    widths = [s["i"]] + [s["h"]] * (s.get("layers", 1) - 1)
    rows = sum(s["lengths"]) if "lengths" in s else s.get("t", 1) * s["b"]
    return float(sum(2 * rows * gates * s["h"] * (width + s["h"]) for width in widths))


# Compiled, a network on a GPU is unrolled step by step: minutes to compile, and slower than cuDNN.
NATIVE_ON_GPU = ("eager", "flattened")
BENCHES = [
    Bench(OPS["lstm"], SEQUENCES, partial(flops, 4), gpu_shapes=ON_GPU, gpu_peers=NATIVE_ON_GPU),
    Bench(OPS["gru"], SEQUENCES, partial(flops, 3), gpu_shapes=ON_GPU, gpu_peers=NATIVE_ON_GPU),
    Bench(OPS["lstm_cell"], CELLS, partial(flops, 4), gpu_shapes=CELLS_ON_GPU),
    Bench(OPS["gru_cell"], CELLS, partial(flops, 3), gpu_shapes=CELLS_ON_GPU),
]

if __name__ == "__main__":
    main(BENCHES)
