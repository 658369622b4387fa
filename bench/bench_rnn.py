"""LSTM and GRU over sequences, batched and one at a time, and their cells."""

from functools import partial

from pyops.cases import OPS
from pyops.certificate import Shape

from .command import main
from .harness import Bench

SEQUENCES: dict[str, Shape] = {
    "t100.b32.h256": dict(t=100, b=32, i=256, h=256),
    "t100.b1.h256": dict(t=100, b=1, i=256, h=256),
    "t28.b128.h128.layers2": dict(t=28, b=128, i=28, h=128, layers=2, batch_first=True),
    "t50.b16.h256.packed": dict(t=50, b=16, i=256, h=256, lengths=tuple(range(50, 2, -3))),
}
# Deep Speech 2 has bidirectional layers of hundreds of units over spectrograms of seconds.
MORE: dict[str, Shape] = {
    **{
        f"t50.b{b}.h{h}": dict(t=50, b=b, i=h, h=h)
        for h in (128, 256, 512, 1024)
        for b in (1, 4, 16, 64)
    },
    "t28.b64.h128.layers2": dict(t=28, b=64, i=28, h=128, layers=2, batch_first=True),
    "deepspeech.b8": dict(t=150, b=8, i=672, h=800, bidirectional=True),
    "deepspeech.b1": dict(t=150, b=1, i=672, h=800, bidirectional=True),
    "deepspeech.packed": dict(
        t=100, b=8, i=672, h=800, bidirectional=True, lengths=tuple(range(100, 20, -10))
    ),
    "t64.b64.h128.packed": dict(t=64, b=64, i=128, h=128, lengths=tuple(range(64, 0, -1))),
    "t100.b4.h512.packed": dict(t=100, b=4, i=512, h=512, lengths=(100, 83, 51, 20)),
}
SHORT: dict[str, Shape] = {"t10.b32.h256": dict(t=10, b=32, i=256, h=256)}
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
MORE_CELLS = {f"b{b}.h{h}": dict(b=b, i=h, h=h) for h in (128, 512, 1024) for b in (1, 4, 16, 64)}
CELLS_ON_GPU = {"b1024.h1024": dict(b=1024, i=1024, h=1024), **CELLS}


def flops(gates: int, s: Shape) -> float:
    """The products with both weight matrices of every layer and direction, at every step."""
    directions = 2 if s.get("bidirectional") else 1
    widths = [s["i"]] + [directions * s["h"]] * (s.get("layers", 1) - 1)
    rows = sum(s["lengths"]) if "lengths" in s else s.get("t", 1) * s["b"]
    return float(sum(2 * rows * directions * gates * s["h"] * (w + s["h"]) for w in widths))


def sequences(name: str, gates: int) -> Bench:
    """A network over whole sequences."""
    return Bench(
        OPS[name], SEQUENCES, partial(flops, gates), peers=NATIVE,
        more=MORE, gpu_shapes=ON_GPU, gpu_peers=NATIVE_ON_GPU,
    )  # fmt: skip


def compiled(name: str, gates: int) -> Bench:
    """A few steps of it, where that can be compiled."""
    return Bench(OPS[name], {}, partial(flops, gates), more=SHORT, gpu_shapes={})


def cells(name: str, gates: int) -> Bench:
    """One step of it."""
    return Bench(OPS[name], CELLS, partial(flops, gates), more=MORE_CELLS, gpu_shapes=CELLS_ON_GPU)


# Compiled, a network is unrolled step by step: a hundred steps compile for minutes.
NATIVE = ("eager",)
NATIVE_ON_GPU = ("eager", "flattened")
BENCHES = [
    *(sequences("lstm", 4), sequences("gru", 3), compiled("lstm", 4), compiled("gru", 3)),
    *(cells("lstm_cell", 4), cells("gru_cell", 3)),
]

if __name__ == "__main__":
    main(BENCHES)
