"""The emulated GPU by kernels whose results are known; its orders by every kernel of ours."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import torch

from host import ROOT, library
from kernel_calls import CALLS, reachable

GPU = ROOT / "tests" / "emulation" / "gpu"
SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION, TOO_LARGE = 0, 1, 9, 720


@pytest.fixture(scope="module")
def machine():
    """In two libraries: what is thread_local in that of the kernels is shared memory."""
    flags = ["-DPYOPS_CUDA", "-fno-extern-tls-init", f"-I{GPU / 'include'}"]
    for header in ("cuda_runtime.h", "cute.h"):  # a library is built again when they change
        flags += ["-include", str(GPU / "include" / header)]
    threads = library("emulation/gpu/threads.cpp", *flags)
    return library("emulation/gpu/semantics.cpp", *flags, "-Wl,--no-as-needed", threads._name)


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def reversed_by(machine, waits):
    x = np.arange(3 * 64, dtype=np.int32)
    results = [np.zeros_like(x) for _ in range(2)]
    for result in results:
        assert machine.run_reverse(pointer(result), pointer(x), 3, waits) == SUCCESS
    return x.reshape(3, 64)[:, ::-1].ravel(), *results


def test_a_barrier_makes_both_orders_equal(machine):
    right, *results = reversed_by(machine, True)
    assert all(np.array_equal(result, right) for result in results)


def test_without_its_barrier_neither_order_is_right(machine):
    """What nobody has stored yet is poison."""
    right, *results = reversed_by(machine, False)
    assert not any(np.array_equal(result, right) for result in results)
    assert not np.array_equal(*results)
    assert all((result == -1).sum() == right.size // 2 for result in results)


def test_every_thread_of_a_grid_runs_once(machine):
    visits = np.zeros(12 * 64, np.int32)
    assert machine.run_places(pointer(visits)) == SUCCESS
    assert (visits == 1).all()


def test_lanes_exchange(machine):
    x = np.arange(-3, 61, dtype=np.int32)
    sums, positive = np.zeros_like(x), np.zeros_like(x)
    assert machine.run_warp(pointer(x), pointer(sums), pointer(positive)) == SUCCESS
    assert np.array_equal(sums, x.reshape(2, 32).sum(1).repeat(32))
    assert np.array_equal(positive, [0] * 32 + [1] * 32)


def test_warps_multiply(machine):
    """Small integers: exact, and different wherever a lane takes another's."""
    torch.manual_seed(0)
    a, b = (torch.randint(-8, 9, shape).bfloat16() for shape in ((16, 16), (16, 8)))
    c = np.zeros((16, 8), np.float32)
    bits = [t.view(torch.int16).numpy() for t in (a, b)]
    assert machine.run_multiply(*map(pointer, bits), pointer(c)) == SUCCESS
    assert np.array_equal(c, (a.float() @ b.float()).numpy())


def test_warps_multiply_tf32(machine):
    """The bits beyond TF32's are nothing."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    c = np.zeros((16, 8), np.float32)
    noisy = [np.nextafter(x, np.where(x > 0, np.inf, -np.inf), dtype=np.float32) for x in (a, b)]
    assert machine.run_multiply_tf32(*map(pointer, noisy), pointer(c)) == SUCCESS
    assert np.array_equal(c, a @ b)


def test_blocks_vote(machine):
    agreed = np.full((8, 64), -1, np.int32)
    assert machine.run_votes(pointer(agreed), 8) == SUCCESS
    assert (agreed == np.arange(1, 9)[:, None] % 2).all()


def test_blocks_wait_for_each_other(machine):
    """Also for those behind them, which only blocks that run at once can."""
    for _ in range(2):
        turn, log = np.zeros(1, np.uint32), np.zeros(32, np.int32)
        assert machine.run_turns(pointer(turn), pointer(log), 32) == SUCCESS
        assert np.array_equal(log, range(1, 33))
    assert machine.run_turns(pointer(turn), pointer(log), 33) == TOO_LARGE


def test_shared_memory_has_to_be_asked_for(machine):
    seen = np.zeros(1, np.int32)
    for size in (48 << 10, 163 << 10):
        assert machine.run_dynamic(pointer(seen), size, size, size - 1) == SUCCESS
        assert seen[0] == 0xFF
    assert machine.run_dynamic(pointer(seen), 64 << 10, 0, 0) == INVALID_VALUE
    assert machine.run_dynamic(pointer(seen), 0, (163 << 10) + 1, 0) == INVALID_VALUE


def test_a_launch_without_threads_is_an_error(machine):
    for blocks, threads in ((0, 32), (1, 0), (1, 1056)):
        assert machine.run_leaving(blocks, threads) == INVALID_CONFIGURATION


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("run_leaving(1, 64)", "a thread ends before a barrier"),
        ("run_dynamic(ctypes.byref(ctypes.c_int()), 64, 64, 64)", "beyond its dynamic shared"),
    ],
)
def test_what_a_gpu_bears_in_silence_ends_the_program(machine, call, complaint):
    code = f"import ctypes; ctypes.CDLL({machine._name!r}).{call}"
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert end.returncode < 0
    assert complaint in end.stderr


@pytest.mark.cuda
@pytest.mark.parametrize("call", [call for call in CALLS if call.arch == "sm_80"], ids=str)
def test_both_orders_give_the_same_bits(call):
    """An emulated GPU runs half of a kernel's launches backwards: a barrier missed would show."""
    assert call in reachable()
    with call.setting():
        inputs = call.inputs()
        starts = call.starts(inputs)
        first, *others = (call.results(inputs, starts) for _ in range(3))
    for name, result in first.items():
        assert all(torch.equal(result, other[name]) for other in others), name
