import builtins
import subprocess
import sys

import pyops
from pyops.cli import info, table

TABLES = [
    {"op": "f", "kernel": "f_amx", "isa": "amx", "dtypes": ["bfloat16"], "condition": "groups = 1"},
    {"op": "f", "kernel": "f_avx2", "isa": "avx2", "dtypes": ["float32", "bfloat16"],
     "condition": ""},
    {"op": "f", "kernel": "f_scalar", "isa": "scalar", "dtypes": ["float32"], "condition": ""},
    {"op": "f", "kernel": "native", "isa": "scalar", "dtypes": [], "condition": ""},
]  # fmt: skip


def test_kernels_by_dtype_under_each_isa():
    assert info.serving(TABLES, "amx") == [
        ("f", "float64, float16", "native"),
        ("f", "float32", "avx2"),
        ("f", "bfloat16", "amx (groups = 1), avx2"),
    ]
    assert ("f", "float32, bfloat16", "avx2") in info.serving(TABLES, "avx2")
    assert info.serving(TABLES, "scalar") == [
        ("f", "float64, bfloat16, float16", "native"),
        ("f", "float32", "scalar"),
    ]


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


def test_a_reader_that_leaves_early_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m pyops info | true"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
