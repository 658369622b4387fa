"""Building where it cannot work: one sentence that says what to do."""

import os
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


def stand_in(folder, version):
    """A torch of which no more is known than its version; without one, none."""
    if version is None:
        return None
    torch = folder / "torch"
    torch.mkdir()
    (torch / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    (torch / "__init__.py").touch()
    return SimpleNamespace(__spec__=ModuleSpec("torch", None, origin=str(torch / "__init__.py")))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "pyops builds against the torch it will run with, and none is here: "),
        ("2.10.0", "pyops builds against torch>=2.11,<2.14, here is torch 2.10.0: "),
        ("2.14.0+cpu", "pyops builds against torch>=2.11,<2.14, here is torch 2.14.0+cpu: "),
        ("2.14.0a0", "pyops builds against torch>=2.11,<2.14, here is torch 2.14.0a0: "),
    ],
)
def test_which_torch_to_install(monkeypatch, tmp_path, version, message):
    monkeypatch.setitem(sys.modules, "torch", stand_in(tmp_path, version))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "setup.py"))
    assert exit.value.code == (
        f"{message}`pip install 'torch>=2.11,<2.14'`, then `pip install --no-build-isolation .`"
    )


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1", "2.13.0+cpu", "2.13.1a0+git1234567"])
def test_torch_that_will_do(monkeypatch, tmp_path, version):
    monkeypatch.setitem(sys.modules, "torch", stand_in(tmp_path, version))
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.chdir(ROOT)
    assert runpy.run_path(str(ROOT / "setup.py"))["TORCH_VERSION"] == version


def test_a_source_distribution_has_all_that_a_build_reads(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    listed = (tmp_path / "pyops.egg-info" / "SOURCES.txt").read_text().splitlines()
    folders = [p for name in ("csrc", "cmake") for p in (ROOT / name).rglob("*") if p.is_file()]
    files = [ROOT / name for name in ("CMakeLists.txt", "constraints.txt", "setup.py")]
    python = [*(ROOT / "pyops").rglob("*.py*"), *(ROOT / "pyops" / "bench").glob("*.py")]
    modules = [p for p in python if p.suffix in (".py", ".pyi") and p.name != "_build_info.py"]
    read = {str(p.relative_to(ROOT)) for p in (*folders, *files, *modules)}
    assert read - set(listed) == set()


def test_a_compiler_too_old_is_refused_once(tmp_path):
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pyops").mkdir()
    shutil.copy(ROOT / "pyops" / "__init__.py", tmp_path / "pyops")
    stand_in(tmp_path, "2.11.0")
    real = shutil.which("g++")
    old = tmp_path / "g++-10"
    old.write_text(f'#!/bin/sh\nexec {real} -U__GNUC__ -D__GNUC__=10 "$@"\n')
    old.chmod(0o755)

    def output_of_build(compiler):
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        variables = os.environ | {"CXX": str(compiler), "CMAKE_ARGS": "", "PYOPS_CUDA": "0"}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode != 0
        return done.stdout + done.stderr

    refusal = "pyops needs g++ 11 or newer, found "
    assert f"{refusal}10." in output_of_build(old)
    assert refusal not in output_of_build(real)  # it gets further, and finds no sources
