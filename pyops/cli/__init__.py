"""The command line: one module per subcommand, imported only when it is asked for.

A subcommand's module has `add_arguments(parser)` and `run(args) -> int`, its exit code.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from pyops import __version__

COMMANDS = {
    "info": "what this machine offers and which kernel serves what",
    "check": "certify that every operator matches float64 and PyTorch on this machine",
    "bench": "time every operator against PyTorch",
    "train": "train one of the example models",
    "demo": "train a CNN on torch.nn and on pyops.nn and compare the two runs",
}
EXTRAS = {"matplotlib", "mlxtend", "pandas", "rich", "sklearn", "tqdm"}


class UserError(RuntimeError):
    """What the user can put right: `main` prints its one line and exits with code 2."""


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` (default: the process's arguments) names."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser(argv).parse_args(argv)
        code: int = _module(args.command).run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        message = f'this command needs {missing}: pip install "pyops[tools]"'
    except KeyboardInterrupt:
        print("pyops: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads our output, `head` for one, has seen enough
        _print_no_more()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _print_no_more()
        message = f"cannot write the output: {error.strerror}"
    print(f"pyops: {message}", file=sys.stderr)
    return 2


def _print_no_more() -> None:
    """Else what is buffered fails again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyops", description="Faster PyTorch layers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sentence = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=sentence)
        if name in argv[:1]:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"pyops.cli.{command}")
