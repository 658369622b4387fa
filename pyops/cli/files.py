"""Output files that are whole or not there at all."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` in one piece; null stands for what is no finite number."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
