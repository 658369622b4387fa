"""Arguments that say something of both axes of an image."""

from collections.abc import Sequence

Size2 = int | Sequence[int]


def pair(size: Size2) -> Sequence[int]:
    """One integer for both axes, twice: the dispatcher does not repeat a symbolic one."""
    return (size, size) if isinstance(size, int) else size
