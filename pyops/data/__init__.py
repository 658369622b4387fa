"""Data of the example models: handwritten digits and English text, nothing downloaded."""

from pyops.data.augment import augment, to_rgb
from pyops.data.digits import Digits, load_digits
from pyops.data.text import VOCABULARY, load_text, windows

__all__ = ["VOCABULARY", "Digits", "augment", "load_digits", "load_text", "to_rgb", "windows"]
