"""The benchmarks' way on a GPU: its logic with clocks, events and graphs that need none."""

import argparse
import contextlib
import dataclasses
import types

import pytest
import torch

from pyops.bench import command, harness, peaks, peers
from pyops.bench.clocks import GpuClock, HostClock, clock_of
from pyops.bench.harness import Bench, Case, Settings, interleave
from pyops.bench.peers import Job
from pyops.cases import OPS
from pyops.certificate import Inputs
from pyops.cli import UserError
from test_bench import LINEAR, SETTINGS
from test_bench import peaks as limits


class Stream:
    """A GPU that runs what is enqueued at its own pace, in milliseconds."""

    def __init__(self):
        self.now, self.synchronized, self.log = 0.0, 0, []

    def event(self):
        stream = self

        class Event:
            def record(self):
                self.at = stream.now

            def elapsed_time(self, other):
                return other.at - self.at

            def synchronize(self):
                stream.synchronized += 1

        return Event()

    def work(self, name, milliseconds):
        def call():
            self.log.append(name)
            self.now += milliseconds

        return call


def test_events_measure_all_calls_at_once_and_wait_once():
    stream = Stream()
    clock = GpuClock(stream.event)
    assert not clock.cold
    assert clock.seconds(stream.work("a", 2.0), 5) == pytest.approx(10e-3)
    assert (stream.log, stream.synchronized) == (["a"] * 5, 1)


def test_a_cold_clock_flushes_before_each_call_and_does_not_count_it():
    stream = Stream()
    clock = GpuClock(stream.event, stream.work("flush", 100.0))
    assert clock.cold
    assert clock.seconds(stream.work("a", 2.0), 3) == pytest.approx(6e-3)
    assert stream.log == ["flush", "a"] * 3


def test_a_job_that_does_the_work_several_times_counts_it_so():
    stream, entered = Stream(), []

    @contextlib.contextmanager
    def setting():
        entered.append(stream.now)
        yield

    jobs = {
        "once": Job(stream.work("once", 4.0), setting=setting),
        "graph": Job(stream.work("graph", 20.0), times=20),
    }
    samples = interleave(jobs, rounds=3, seconds=0.04, clock=GpuClock(stream.event))
    assert samples == {"once": [pytest.approx(4e-3)] * 3, "graph": [pytest.approx(1e-3)] * 3}
    assert len(entered) == 1 + 1 + 3  # to warm up, to size the samples, and once a sample


def test_the_host_has_no_cold_cache():
    assert isinstance(clock_of("cpu"), HostClock)
    with pytest.raises(ValueError, match="cold"):
        clock_of("cpu", cold=True)


@pytest.fixture
def pretend_gpu(monkeypatch):
    """The harness takes the CPU for a GPU that can capture graphs."""
    monkeypatch.setattr(Case, "_has_graphs", lambda self: not self.settings.cold)
    captured = []

    def capture(job):
        captured.append(job)
        return dataclasses.replace(job, times=peers.REPEATS, call=lambda: repeat(job))

    def repeat(job):
        for _ in range(peers.REPEATS):
            job.call()

    monkeypatch.setattr(peers, "captured", capture)
    return captured


def results(bench=LINEAR, settings=SETTINGS):
    shape = next(iter(bench.shapes))
    return list(Case(bench, shape, torch.float32, settings, limits()).results())


def test_small_calls_are_timed_in_graphs_too(pretend_gpu, monkeypatch):
    monkeypatch.setattr(harness, "SMALL", 1e9)
    found = results()
    assert [r.layout for r in found] == ["contiguous", "contiguous, graph"] * 2
    assert all(r.ms > 0 and not r.failure for r in found)
    assert len(pretend_gpu) == 2 * (1 + len(found[0].peers_ms))
    monkeypatch.setattr(harness, "SMALL", 0.0)
    assert [r.layout for r in results()] == ["contiguous"] * 2


def test_what_cannot_be_captured_fails_where_it_is_ours_alone(pretend_gpu, monkeypatch):
    def refuse(job):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(harness, "SMALL", 1e9)
    monkeypatch.setattr(peers, "captured", refuse)
    failures = [r.failure for r in results() if r.layout.endswith("graph")]
    assert failures == ["graph: RuntimeError: operation not permitted when stream is capturing"] * 2


def test_a_case_that_breaks_while_it_is_timed_fails_alone(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(harness, "natives", full)
    assert [r.failure for r in results()] == ["OutOfMemoryError: no room"]


def test_shapes_and_peers_of_a_gpu_replace_the_cpus():
    bench = Bench(OPS["linear"], {"small": {}}, lambda s: 0.0)
    assert bench.shapes_on("cuda") == {"small": {}}
    assert bench.peers_on("cuda:1") == bench.peers
    larger = dataclasses.replace(bench, gpu_shapes={"large": {}}, gpu_peers=("eager", "flash"))
    assert larger.shapes_on("cuda") == {"large": {}}
    assert larger.peers_on("cuda") == ("eager", "flash")
    assert (larger.shapes_on("cpu"), larger.peers_on("cpu")) == (bench.shapes, bench.peers)


def test_every_backend_of_attention_is_forced_in_turn():
    op = OPS["scaled_dot_product_attention"]
    inputs = op.inputs(op.shapes["odd"], torch.float32)
    jobs, skipped = peers.natives(op, inputs, "forward", ("eager", *peers.SDPA))
    assert jobs.keys() | skipped.keys() == {"eager", *peers.SDPA}
    assert {"eager", "math"} <= jobs.keys()
    with jobs["math"].setting():
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()


def test_flattened_weights_are_one_piece_of_memory(monkeypatch):
    op = OPS["lstm"]
    inputs = op.inputs(op.shapes["stacked"], torch.float32)
    asked = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *a: asked.append(a))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", {"LSTM": 2}.get)
    flat = peers._flattened(op, inputs)
    weights, per_layer, width, mode, hidden, _, layers, batch_first, bidirectional = asked[0]
    assert len(weights) == 4 * 2 * 2 and per_layer == 4
    assert [w.data_ptr() for w in weights] == [
        t.data_ptr() for n, t in flat.tensors.items() if n.startswith(("w_", "b_"))
    ]
    assert (width, hidden, layers, batch_first, bidirectional) == (9, 17, 2, True, True)
    assert mode == 2
    assert isinstance(flat, Inputs)
    jobs, _ = peers.natives(op, inputs, "forward", ("eager", "flattened"))
    assert list(jobs) == ["eager"]  # on the CPU there is no such layout


def test_cold_calls_are_held_against_memory_even_where_they_fit_a_cache():
    some = dataclasses.replace(limits(), bandwidth={1 << 27: 1e12, 1 << 29: 2e12})
    assert some.seconds("float32", 0.0, 1e6, 1e6) == {}
    assert some.seconds("float32", 0.0, 1e6, 1e6, cold=4e5) == {"memory": 4e5 / 2e12}


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_on_a_gpu_may_be_products_of_tf32(monkeypatch, precision):
    rates = {torch.float64: 1.0, torch.float32: 2.0, torch.bfloat16: 90.0, torch.float16: 80.0}

    def matmul(dtype, device, clock, seconds):
        high = torch.get_float32_matmul_precision() == "high"
        return 30.0 if dtype == torch.float32 and high and device == "cuda" else rates[dtype]

    monkeypatch.setattr(peaks, "_matmul", matmul)
    monkeypatch.setattr(peaks, "_sets", lambda device: ())
    monkeypatch.setattr(peaks, "clock_of", lambda device: HostClock())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = peaks.measure("cuda")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.flops["tf32"] == found.flops["float32-high"] == 30.0
    assert found.flops["float32"] == 30.0 / 3
    assert not found.exact


def run(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_a_run_that_is_out_of_time_says_what_it_left(monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda device: limits())
    order = []

    def timed(case):
        order.append((case.bench.op.name, case.shape))
        return iter(())

    monkeypatch.setattr(Case, "results", timed)
    times = iter([0.0, *[1.0] * 4, *[100.0] * 100])
    clock = types.SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(command, "time", clock)
    assert run("linear_relu", "--dtype", "float32", "--minutes", "1", "--peers") == 0
    assert [op for op, _ in order] == ["linear", "linear_relu", "linear", "linear_relu"]
    assert len(set(order)) == 4
    assert "7 of 11 cases were not begun within 1 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "warp"), "cannot use the device warp: it must be cpu, or a GPU"),
        (("--cold",), "--cold is for GPUs"),
    ],
)
def test_what_cannot_be_is_the_users_error(words, message):
    with pytest.raises(UserError, match=message):
        run("linear_relu", *words)


def test_a_result_says_how_to_have_it_again():
    cpu, gpu = (
        harness.Result("f", "s", "float32", "forward", "contiguous", "k", place).reproduction
        for place in ("amx", "sm_90")
    )
    assert cpu == "PYOPS_ISA=amx pyops bench --full --only '^f/s$' --dtype float32"
    assert gpu == "PYOPS_ISA=sm_90 pyops bench --full --only '^f/s$' --dtype float32 --device cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_times_on_a_gpu(cold):
    settings = Settings(("float32",), "cuda", ("eager",), 3, 1e-3, cold=cold)
    bench = dataclasses.replace(LINEAR, gpu_shapes=None)
    found = list(Case(bench, "tiny", torch.float32, settings, peaks.measure("cuda")).results())
    assert not [r.failure for r in found if r.failure]
    assert ("contiguous, graph" in [r.layout for r in found]) == (not cold)
