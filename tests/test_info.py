import builtins
import os
import re
import subprocess
import sys

import pytest

import pyops
from pyops.cli import info, table

TABLES = [
    {"op": "f", "kernel": "f_hopper_sm90", "device": "cuda", "needs": "sm_90",
     "dtypes": ["bfloat16"], "condition": ""},
    {"op": "f", "kernel": "f_cuda", "device": "cuda", "needs": "sm_80",
     "dtypes": ["float32", "bfloat16"], "condition": ""},
    {"op": "f", "kernel": "f_amx", "device": "cpu", "needs": "amx", "dtypes": ["bfloat16"],
     "condition": "groups = 1"},
    {"op": "f", "kernel": "f_avx2", "device": "cpu", "needs": "avx2",
     "dtypes": ["float32", "bfloat16"], "condition": ""},
    {"op": "f", "kernel": "f_scalar", "device": "cpu", "needs": "scalar", "dtypes": ["float32"],
     "condition": ""},
]  # fmt: skip


def test_kernels_by_dtype_under_each_isa():
    assert info.serving(TABLES, "cpu", info.ISAS) == [
        ("f", "float64, float16", "native"),
        ("f", "float32", "avx2"),
        ("f", "bfloat16", "amx (groups = 1), avx2"),
    ]
    assert ("f", "float32, bfloat16", "avx2") in info.serving(TABLES, "cpu", info.ISAS[:2])
    assert info.serving(TABLES, "cpu", info.ISAS[:1]) == [
        ("f", "float64, bfloat16, float16", "native"),
        ("f", "float32", "scalar"),
    ]


def test_kernels_by_dtype_on_each_gpu(monkeypatch):
    def serving(*capability):
        return info.serving(TABLES, "cuda", info.architectures_of(capability))

    for newer in ((8, 0), (8, 9), (10, 0)):
        assert ("f", "float32, bfloat16", "cuda") in serving(*newer)
    assert ("f", "bfloat16", "hopper_sm90") in serving(9, 0)
    assert serving(7, 5) == [("f", "float64, float32, bfloat16, float16", "native")]
    monkeypatch.setattr(info._C, "build_info", lambda: {"hopper": False})
    assert ("f", "float32, bfloat16", "cuda") in serving(9, 0)


def test_every_gpu_here_has_its_table(monkeypatch, capsys):
    monkeypatch.setattr(info, "gpu_kinds", lambda: {"sm_90": info.ARCHITECTURES})
    assert info.run(None) == 0
    assert "Kernels on sm_90" in capsys.readouterr().out


def test_prints_machine_and_every_op(capsys):
    assert info.run(None) == 0
    output = capsys.readouterr().out
    assert f"{pyops.isa()} in use" in output
    for row in pyops._C.tables():
        assert row["op"] in output


def test_effective_isa_is_the_capped_one(capsys):
    with pyops.isa_cap("scalar"):
        info.run(None)
    assert "scalar in use" in capsys.readouterr().out


def test_tables_need_no_rich(monkeypatch, capsys):
    real = builtins.__import__

    def without_rich(name, *rest):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    table.show("title", ("name", "count"), [("a", "1"), ("longer", "20")])
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "name    count",
        "------  -----",
        "a           1",
        "longer     20",
        "",
    ]


WIDE = (("f", "float32, bfloat16", "f_avx2 (groups = 1), f_scalar", "yes"),)


def test_a_terminal_has_lines_broken_between_words(monkeypatch, capsys):
    pytest.importorskip("rich")
    for name, value in {"COLUMNS": "44", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    table.show("title", ("op", "dtype", "kernels", "repeats"), WIDE, ["red"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert {len(line) for line in lines} == {44}
    words = [word for column in ("op dtype kernels repeats", *WIDE[0]) for word in column.split()]
    assert sorted(" ".join(lines[1:]).replace("─", "").split()) == sorted(words)


def test_a_file_has_whole_lines_and_no_blanks_behind_them(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    table.show("title", ("op", "dtype", "kernels", "repeats"), WIDE)
    lines = capsys.readouterr().out.splitlines()
    assert any(all(cell in line for cell in WIDE[0]) for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m pyops info | true"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_one_line(unbuffered):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "pyops", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    words = "pyops: cannot write the output: No space left on device\n"
    assert (process.returncode, process.stderr) == (2, words)
