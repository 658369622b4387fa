"""What arguments of several commands may be."""

import argparse
from collections.abc import Callable


def integer(least: int) -> Callable[[str], int]:
    """The type, as argparse means it, of a whole number from `least` on."""

    def integer(text: str) -> int:  # argparse names it where the text is none
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer
