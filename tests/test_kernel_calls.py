"""The list of calls that reach every CUDA kernel: complete, and each of them one that is legal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernel_calls
import pyops
from kernel_calls import CALLS

CSRC = Path(__file__).parent.parent / "csrc"
ROW = re.compile(r'\{"(\w+)",\s*Arch::k(Sm\d+)')


def rows():
    """Of every table's rows for GPUs: the kernel and its architecture, whatever was built."""
    return [row for path in CSRC.glob("*/*.cpp") for row in ROW.findall(path.read_text())]


def test_every_kernel_has_a_call():
    listed = {kernel for kernel, _ in rows()}
    assert {kernel for call in CALLS for kernel in call.kernels} == listed


def test_hoppers_kernels_are_called_on_hopper_alone():
    hopper = {kernel for kernel, arch in rows() if arch == "Sm90"}
    for call in CALLS:
        assert (call.arch == "sm_90") == bool(hopper & set(call.kernels)), call


@pytest.mark.skipif(not pyops._C.build_info()["cuda"], reason="built without CUDA kernels")
def test_the_sources_say_what_the_build_lists():
    built = {row["kernel"] for row in pyops._C.tables() if row["device"] == "cuda"}
    assert built == {kernel for kernel, _ in rows()}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_is_right_on_the_cpu(call):
    inputs = call.inputs("cpu")
    starts = call.starts(inputs)
    before = torch.get_float32_matmul_precision(), pyops._C.arch_cap()
    with call.setting():
        ours, native = call.results(inputs, starts), call.native(inputs, starts)
    assert before == (torch.get_float32_matmul_precision(), pyops._C.arch_cap())
    assert sum(name.startswith("grad_") for name in ours) == len(inputs.tensors)
    for name, right in native.items():
        noise = 0.05 * right.abs().max().item()
        torch.testing.assert_close(ours[name].double(), right, rtol=0.05, atol=noise)


def test_draws_differ_and_repeat():
    call = CALLS[0]
    first, again, other = (call.inputs("cpu", draw).tensors["input"] for draw in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_was_called():
    assert kernel_calls.reachable() == []
    program = [sys.executable, kernel_calls.__file__]
    assert subprocess.run(program, capture_output=True).returncode != 0
