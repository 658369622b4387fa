"""The cost of one call: every op on a shape where there is next to nothing to compute."""

from pyops.cases import OPS

from .command import main
from .harness import Bench

# Compiled code has no calls to compare, and layouts make no difference at this size.
BENCHES = [
    Bench(op, {"tiny": op.shapes["tiny"]}, flops=lambda s: 0.0, peers=("eager",))
    for op in OPS.values()
]

if __name__ == "__main__":
    main(BENCHES)
