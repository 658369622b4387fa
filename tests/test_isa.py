"""The instruction-set cap: obeyed by every call, restored, and spelt right or refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyops
from suite import ISAS

DETECTED = ISAS.index(pyops._C.isa_detected())


def linear_kernel(dtype):
    x = torch.ones(2, 3, dtype=dtype)
    with pyops.explain() as log:
        pyops.functional.linear(x, x)
    return log.calls[0].kernel


@pytest.mark.parametrize("isa", ISAS[: DETECTED + 1])
def test_the_capped_kernel_is_the_one_that_runs(isa):
    with pyops.isa_cap(isa):
        assert pyops.isa() == isa
        assert linear_kernel(torch.bfloat16) == f"linear_forward_{isa}"
    assert pyops.isa() == pyops._C.isa_detected()


@pytest.mark.parametrize("isa", ISAS[DETECTED + 1 :])
def test_a_cap_adds_nothing(isa):
    with pyops.isa_cap(isa):
        assert pyops.isa() == pyops._C.isa_detected()


def test_the_best_row_that_takes_the_dtype_serves_it():
    rows = [r for r in pyops._C.tables() if r["op"] == "linear_forward" and r["device"] == "cpu"]
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        able = [r for r in rows if dtype in r["dtypes"] and ISAS.index(r["needs"]) <= DETECTED]
        assert linear_kernel(getattr(torch, dtype)) == able[0]["kernel"]


def test_caps_nest_and_end_with_their_block():
    with pyops.isa_cap("avx2"):
        with pyops.isa_cap("scalar"):
            assert pyops._C.isa_cap() == "scalar"
        assert pyops._C.isa_cap() == "avx2"
        with pytest.raises(KeyError), pyops.isa_cap("scalar"):
            raise KeyError
        assert pyops._C.isa_cap() == "avx2"
    assert pyops._C.isa_cap() == "amx"


def test_a_gpu_has_its_own_cap():
    with pyops.isa_cap("sm_80"), pyops.isa_cap("avx2"):
        assert (pyops._C.isa_cap(), pyops._C.arch_cap()) == ("avx2", "sm_80")
    assert (pyops._C.isa_cap(), pyops._C.arch_cap()) == ("amx", "sm_90")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="amx, sm_80, sm_90, got 'mmx'"):
        pyops.isa_cap("mmx").__enter__()
    assert pyops._C.isa_cap() == "amx"


def run_with(isa):
    script = "import pyops; print(pyops.isa())"
    environment = os.environ | {"PYOPS_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )


def test_the_environment_sets_the_cap():
    assert run_with("scalar").stdout == "scalar\n"
    assert run_with("").stdout == f"{pyops._C.isa_detected()}\n"  # set to nothing is not set


def test_an_unknown_name_in_the_environment_is_one_clear_error():
    result = run_with("avx1024")
    assert result.returncode == 1
    expected = "expected one of scalar, avx2, avx512, avx512_bf16, amx, sm_80, sm_90, got 'avx1024'"
    assert result.stderr.splitlines()[-1] == f"ValueError: PYOPS_ISA: {expected}"
    assert result.stderr.count("Traceback") == 1


def run_command(folder, **environment):
    command = folder / "pyops"
    command.write_text("from pyops.cli import main; raise SystemExit(main())")
    return subprocess.run(
        [sys.executable, command, "info"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_says_it_in_a_line(tmp_path):
    result = run_command(tmp_path, PYOPS_ISA="avx1024")
    assert result.returncode == 2
    assert result.stderr.startswith("pyops: PYOPS_ISA: expected one of scalar, avx2")
    assert result.stderr.count("\n") == 1


def test_the_module_says_it_in_a_line():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pyops", "info"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYOPS_ISA": "avx1024"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("pyops: PYOPS_ISA: expected one of scalar, avx2")
    assert result.stderr.count("\n") == 1


def test_the_command_is_interrupted_in_a_line_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    result = run_command(tmp_path)
    assert (result.returncode, result.stderr) == (130, "pyops: interrupted\n")
