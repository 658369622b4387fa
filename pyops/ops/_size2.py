"""Arguments that say something of both axes of an image."""

from collections.abc import Sequence

import numpy

Size2 = int | Sequence[int]


def pair(size: Size2) -> Sequence[int]:
    """One integer for both axes, twice: the dispatcher does not repeat a symbolic one."""
    if isinstance(size, int):
        return size, size
    both = size if isinstance(size, (tuple, list)) else (size, size)
    for one in both:
        # Which torch takes for integers and pybind11 does not; asked first what costs less.
        if type(one) is not int and isinstance(one, numpy.integer):
            return [*map(int, both)]
    return both
