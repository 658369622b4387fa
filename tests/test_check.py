"""A certificate is worth what it refuses."""

import argparse
import itertools
import json
from dataclasses import fields

import pytest
import torch

import pyops.functional
from pyops.cases import OPS
from pyops.cli import UserError, check


def certify(*words):
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args(words))


def findings(tmp_path, *words):
    file = tmp_path / "findings.json"
    code = certify(*words, "--json", str(file))
    return code, json.loads(file.read_text())


def test_a_right_op_passes(tmp_path):
    code, document = findings(tmp_path, "linear", "--quick", "--isa", "scalar")
    assert code == 0
    assert document["passed"]
    found = document["findings"]
    assert [f["dtype"] for f in found] == [d for d in check.DTYPES for _ in range(2)]
    assert [f["direction"] for f in found] == ["forward", "backward"] * len(check.DTYPES)
    assert set(found[0]) == {field.name for field in fields(check.Finding)} | {"passed"}
    assert all(f["repeats"] and f["used"] <= 1 for f in found)


@pytest.mark.parametrize("threads", [1, 3])
def test_float32_passes_however_sums_are_shared(threads):
    """On one thread a sum is longest, and its order shows."""
    torch.set_num_threads(threads)
    try:
        assert certify("--dtype", "float32", "--device", "cpu") == 0
    finally:
        torch.set_num_threads(1)


def test_float64_is_differentiated(tmp_path):
    isa = check.available_isas()[-1]
    _, document = findings(tmp_path, "linear", "--dtype", "float64", "--isa", isa)
    assert [f["gradcheck"] for f in document["findings"]] == [None, True]


def scaled(y):
    return y * 1.01


def cut(y):
    return y[..., :-1]


def noisy(y):
    return y + 1e-12 * torch.rand_like(y) * y.abs().max()


def widened(y):
    return y.double()


@pytest.mark.parametrize(
    ("mutate", "dtype", "reason"),
    [
        (scaled, "float32", "error"),
        (cut, "float32", "output0: shape is"),
        (widened, "bfloat16", "dtype"),
        (noisy, "float64", "changes from call to call"),
    ],
)
def test_a_wrong_op_fails(tmp_path, monkeypatch, capsys, mutate, dtype, reason):
    native = OPS["linear"].native
    monkeypatch.setattr(pyops.functional, "linear", lambda *a: mutate(native(*a)))
    code, document = findings(tmp_path, "linear", "--quick", "--dtype", dtype, "--isa", "scalar")
    assert code == 1
    assert not document["passed"]
    assert any(reason in f["reason"] for f in document["findings"])
    output = capsys.readouterr().out
    assert f"reproduce: pyops check linear --dtype {dtype} --isa scalar" in output


@pytest.mark.parametrize("dtype", check.DTYPES)
@pytest.mark.parametrize("wrong", [0, 1], ids=["inference", "training"])
def test_a_single_wrong_call_fails(tmp_path, monkeypatch, wrong, dtype):
    native, calls = OPS["linear"].native, itertools.count()
    monkeypatch.setattr(
        pyops.functional, "linear", lambda *a: native(*a) * (1 + 0.5 * (next(calls) == wrong))
    )
    code, document = findings(tmp_path, "linear", "--quick", "--dtype", dtype, "--isa", "scalar")
    assert code == 1
    assert "output0: l2 error 5.0" in document["findings"][0]["reason"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such tile\nof this size"), "RuntimeError: no such tile"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_raising_op_is_a_finding(tmp_path, monkeypatch, error, said):
    def broken(*args):
        raise error

    monkeypatch.setattr(pyops.functional, "linear", broken)
    code, document = findings(tmp_path, "linear", "--quick", "--dtype", "float32")
    assert code == 1
    assert {f["reason"] for f in document["findings"]} == {said}


def test_a_wrong_second_derivative_fails(tmp_path, monkeypatch):
    class Linear(torch.autograd.Function):
        """Right up to the first derivative, which it hides from autograd."""

        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            return torch.nn.functional.linear(x, weight, bias)

        @staticmethod
        def backward(ctx, grad):
            x, weight = (t.detach() for t in ctx.saved_tensors)
            return grad @ weight, grad.t() @ x, grad.sum(0)

    monkeypatch.setattr(pyops.functional, "linear", Linear.apply)
    isa = check.available_isas()[-1]
    words = ("linear", "--quick", "--dtype", "float64", "--isa", isa)
    code, document = findings(tmp_path, *words)
    assert code == 1
    forward, backward = document["findings"]
    assert forward["passed"]
    assert backward["gradcheck"] is False
    assert "gradgradcheck" in backward["reason"]


def test_what_is_unknown_is_a_user_error():
    with pytest.raises(UserError, match="op must be one of"):
        certify("linear", "matmul")
    with pyops.isa_cap("scalar"), pytest.raises(UserError, match="isa must be one of scalar"):
        certify("linear", "--isa", "avx2")
    with pytest.raises(UserError, match=r"isa must be one of sm_80, sm_90|no GPU"):
        certify("linear", "--device", "cuda", "--isa", "amx")


@pytest.mark.parametrize("place", ["file/findings.json", "."])
def test_an_unwritable_file_is_refused_before_the_work(tmp_path, monkeypatch, place):
    monkeypatch.setattr(check, "_examine", pytest.fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        certify("linear", "--json", str(tmp_path / place))


def test_a_gpu_is_examined_with_the_code_of_each_architecture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check._C, "build_info", lambda: {"cuda": True, "hopper": True})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    cpu = dict.fromkeys(check.available_isas(), "cpu")
    assert check.places() == cpu | {"sm_80": "cuda", "sm_90": "cuda"}
    with pyops.isa_cap("sm_80"):
        assert check.places() == cpu | {"sm_80": "cuda"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert check.places() == cpu
    examined = []

    def examine(op, dtype, place, device, **how):
        examined.append((place, device, how["differentiate"]))
        return iter(())

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(check, "_examine", examine)
    certify("linear", "--device", "cuda", "--dtype", "float32", "--quick")
    assert examined == [("sm_80", "cuda", False), ("sm_90", "cuda", True)]


@pytest.mark.cuda
def test_a_right_op_passes_on_a_gpu(tmp_path):
    code, document = findings(tmp_path, "linear", "--quick", "--device", "cuda")
    assert code == 0
    assert {f["dtype"] for f in document["findings"]} == set(check.DTYPES)
