"""Importing where it cannot work: one sentence that says what to do."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pyops

LOADER = str(Path(pyops.__file__).parent / "_extension.py")


@pytest.mark.parametrize(
    ("module", "stand_in", "message"),
    [
        (
            "torch",
            None,
            f"pyops was built for torch {torch.__version__} and none is installed: "
            f"`pip install torch=={torch.__version__.partition('+')[0]}`",
        ),
        ("pyops._build_info", None, "start Python in another folder to use an installed pyops, or"),
        (
            "pyops._build_info",
            SimpleNamespace(TORCH_VERSION="1.13.0"),
            f"built for torch 1.13.0 but torch {torch.__version__} is installed: rebuild it with",
        ),
        ("pyops._C", None, f"pyops is not built for Python 3.{sys.version_info[1]}: run `pip "),
    ],
    ids=["no torch", "not built", "another torch", "another Python"],
)
def test_the_error_says_what_to_do(monkeypatch, module, stand_in, message):
    monkeypatch.setitem(sys.modules, module, stand_in)
    with pytest.raises(ImportError) as error:
        runpy.run_path(LOADER)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_torch_that_is_broken_speaks_for_itself(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        runpy.run_path(LOADER)


def test_public_names():
    assert all(hasattr(pyops, name) for name in pyops.__all__)
    functional = pyops.functional
    assert all(callable(getattr(functional, name)) for name in functional.__all__)
    for name in functional.__all__:
        assert getattr(functional, name).__doc__, name
