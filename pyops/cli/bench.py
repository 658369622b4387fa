"""`pyops bench`: every op and model against the best native way, with the machine's limits."""

from pyops.bench.command import add_arguments, run

__all__ = ["add_arguments", "run"]
