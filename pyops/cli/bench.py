"""`pyops bench`: every op and model against the best native way, with the machine's limits."""

import argparse

from pyops.bench import command
from pyops.bench.caps import cap_native

add_arguments = command.add_arguments


def run(args: argparse.Namespace) -> int:
    """Time and report, in a process where native is capped as ours is."""
    cap_native(args.isa)
    return command.run(args)
