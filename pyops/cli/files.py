"""Output files that are whole or not there at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pyops.cli import UserError


def output_directory(path: str | Path) -> Path:
    """The directory `path`, made if need be; UserError when nothing can be written into it."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error


def output_file(path: str) -> Path:
    """The file `path`, its directory made if need be; UserError when it cannot be written."""
    file = Path(path)
    output_directory(file.parent)
    if file.is_dir():
        raise UserError(f"cannot write {file}: it is a directory")
    return file


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in `path`'s place in one step."""
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
