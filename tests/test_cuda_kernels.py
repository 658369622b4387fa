"""Every kernel of the tables for GPUs: reached, right, steady, on any stream and device."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernel_calls import CALLS, reachable

pytestmark = pytest.mark.cuda
every_call = pytest.mark.parametrize("call", CALLS, ids=str)
# Sums of small integers are exact in every order, so that a wrong tile, tail, bias or mask shows.
EXACT = ("max_pool2d", "linear_relu", "conv2d_relu", "conv2d_relu_max_pool2d")


@contextlib.contextmanager
def here(call):
    """As the call wants it; skips where this GPU does not run the code of its architecture."""
    if call not in reachable():
        pytest.skip(f"no {call.arch} here")
    with call.setting():
        yield


def assert_right(call, ours, inputs, starts):
    for name, right in call.native(inputs, starts).items():
        if call.op in EXACT:
            assert torch.equal(ours[name], right.to(ours[name])), name
        else:
            noise = 0.03 * right.abs().max().item()
            torch.testing.assert_close(ours[name].double(), right, rtol=0.03, atol=noise)


@every_call
def test_is_reached(call):
    with here(call):
        inputs = call.inputs()
        assert set(call.kernels) <= set(call.served(inputs, call.starts(inputs)))


@every_call
def test_is_right(call):
    with here(call):
        for draw in range(3):
            inputs = call.inputs(draw=draw)
            starts = call.starts(inputs)
            assert_right(call, call.results(inputs, starts), inputs, starts)


@every_call
def test_gives_the_same_bits_again(call):
    """1000 times, forward and backward, while other kernels run beside it."""
    with here(call):
        inputs = call.inputs()
        starts = call.starts(inputs)
        first = call.results(inputs, starts)
        side, noise = torch.cuda.Stream(), torch.randn(512, 512, device="cuda")
        moved = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(1000):
            with torch.cuda.stream(side):
                noise @ noise
            for name, again in call.results(inputs, starts).items():
                moved += (again != first[name]).sum()
        assert moved.item() == 0


@every_call
def test_runs_on_the_current_stream(call):
    """Its inputs are written there just before, late: elsewhere it would read them too early."""
    with here(call):
        inputs, late = call.inputs(), call.inputs(draw=1)
        starts = call.starts(inputs)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            with torch.no_grad():
                for name, value in late.tensors.items():
                    inputs.tensors[name].copy_(value)
            ours = call.results(inputs, starts)
        stream.synchronize()
        assert_right(call, ours, late, starts)


@every_call
def test_runs_in_a_thread_that_has_done_nothing_before(call, monkeypatch):
    """As autograd's threads: the driver knows no context there until somebody binds one."""
    with here(call):
        inputs = call.inputs()
        starts = call.starts(inputs)
        call.results(inputs, starts)  # then memory is there, and filling it would bind one
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        with ThreadPoolExecutor(1) as thread:
            ours = thread.submit(call.results, inputs, starts).result()
        assert_right(call, ours, inputs, starts)


@every_call
def test_never_waits_for_the_gpu(call):
    with here(call):
        inputs = call.inputs()
        starts = call.starts(inputs)
        call.results(inputs, starts)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call.results(inputs, starts)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@every_call
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_runs_on_a_device_that_is_not_current(call):
    with here(call):
        inputs = call.inputs("cuda:1")
        starts = call.starts(inputs)
        assert_right(call, call.results(inputs, starts), inputs, starts)
