"""English text that ships with Python: the language reference behind `help("topics")`."""

import importlib
import string

import torch
from torch import Tensor

VOCABULARY = string.printable


def load_text() -> Tensor:
    """The text as indices (N,) into VOCABULARY, int64; characters outside of it are left out.

    Raises OSError where Python was installed without its `pydoc_data`.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise OSError("this Python was installed without its help texts (pydoc_data)") from error
    index = {character: i for i, character in enumerate(VOCABULARY)}
    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor([index[character] for character in text if character in index])


def windows(text: Tensor, length: int) -> Tensor:
    """Consecutive pieces (N, length) of `text`; an incomplete last piece is left out."""
    return text[: len(text) // length * length].view(-1, length)
