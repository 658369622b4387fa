"""The stage `build` of `.ci/gpu.py`: what it installs, and for which GPUs it compiles."""

from pathlib import Path

import pytest

import gpu_build
import programs
import test_gpu_stages
from test_gpu_stages import FACTS, options

elsewhere = test_gpu_stages.elsewhere


def test_only_what_is_missing_is_installed(monkeypatch):
    absent = set()
    monkeypatch.setattr(gpu_build, "_is_there", lambda module: module not in absent)
    assert gpu_build.installation(None) == []
    absent.add("cutlass_library")
    (headers,) = gpu_build.installation(None)
    assert headers[-2:] == ["--no-deps", "nvidia-cutlass"] and str(programs.SITE) in headers
    absent.update({"xdist", "pytest"})
    packages, again = gpu_build.installation(None)
    assert packages[-2:] == ["pytest", "pytest-xdist"] and "--no-deps" not in packages
    assert again == headers


def test_given_wheels_are_installed_once_without_an_index(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("wheels").mkdir()
    assert gpu_build.installation(Path("wheels")) == []
    for name in ("one", "two"):
        Path("wheels", f"{name}-1.0-py3-none-any.whl").touch()
    (command,) = gpu_build.installation(Path("wheels"))
    files = [str(tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl") for name in ("one", "two")]
    assert {"--no-index", "--no-deps"} <= set(command) and command[-2:] == files
    (programs.SITE / "one-1.0.dist-info").mkdir(parents=True)
    assert gpu_build.installation(Path("wheels")) == [[*command[:-2], files[1]]]


@pytest.fixture
def commands(monkeypatch):
    """Instead of running what writes to a log: its variables, by the log. The install fails."""
    seen = {}

    def run(command, log, seconds, **variables):
        (programs.OUT / log).write_text("no\n")
        seen[log] = variables
        return 1 if log == "install.log" else 0

    monkeypatch.setattr(gpu_build, "run", run)
    return seen


def test_a_failed_installation_is_told_and_the_rest_compiled(commands, tmp_path):
    (tmp_path / "some-1.0-py3-none-any.whl").touch()
    (outcome,) = gpu_build.build(options("--wheels", str(tmp_path)), FACTS, 60)
    assert (outcome.result, outcome.problems) == ("failed", ["no"])
    assert list(commands) == ["install.log", "build.log"]


@pytest.mark.parametrize(
    ("codes", "result", "what", "problems"),
    [
        ((1, 0), "failed", "without Hopper's kernels", ["wrong"]),
        ((1, 1), "failed", "", ["wrong"]),
        ((None,), "out of time", "", ["wrong"]),
        ((0,), "passed", "", []),
    ],
    ids=str,
)
def test_where_hoppers_kernels_do_not_compile_the_others_are_built(
    monkeypatch, tmp_path, codes, result, what, problems
):
    left, seen = list(codes), []

    def run(command, log, seconds, **variables):
        (programs.OUT / log).write_text("wrong\n")
        seen.append(variables.get("PYOPS_CUDA_HOPPER"))
        return left.pop(0)

    monkeypatch.setattr(gpu_build, "run", run)
    (outcome,) = gpu_build.build(options("--wheels", str(tmp_path)), FACTS, 60)
    assert (outcome.result, outcome.summary, outcome.problems) == (result, what, problems)
    assert seen == [None, "0"][: len(codes)] and not left


@pytest.mark.parametrize(
    ("facts", "asked", "archs"),
    [
        ({"capability": "9.0"}, None, "90-real"),
        ({"capability": "8.0"}, None, ""),
        ({}, None, ""),
        ({"capability": "9.0"}, "89;120", "89;120"),
    ],
    ids=str,
)
def test_it_compiles_for_the_gpu_that_is_here(commands, monkeypatch, tmp_path, facts, asked, archs):
    monkeypatch.delenv("PYOPS_CUDA_ARCHS", raising=False)
    if asked is not None:
        monkeypatch.setenv("PYOPS_CUDA_ARCHS", asked)
    (outcome,) = gpu_build.build(options("--wheels", str(tmp_path)), facts, 60)
    assert outcome.result == "passed"
    assert commands["build.log"] == {"PYOPS_CUDA": "1", "PYOPS_CUDA_ARCHS": archs}
