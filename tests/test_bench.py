"""The harness must refuse what it cannot stand for, and time what it can."""

import argparse
import dataclasses
import importlib
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch

import pyops.functional
from pyops.bench import against, bench_models, command, goals, readme, report
from pyops.bench.clocks import HostClock
from pyops.bench.harness import LEAST_ROUNDS, Bench, Case, Result, Settings, interleave
from pyops.bench.peaks import WORKING_SETS, Peaks
from pyops.bench.peers import Job
from pyops.cases import OPS
from pyops.certificate import reference_of
from pyops.cli import UserError
from pyops.cli.files import write_json

SETTINGS = Settings(dtypes=("float32",), peers=("eager", "channels_last"), rounds=3, seconds=1e-4)
LINEAR = Bench(OPS["linear"], {"tiny": OPS["linear"].shapes["odd"]}, lambda s: 2 * 37 * 67 * 35)


def peaks(flops=1e15, exact=True):
    every = dict.fromkeys(("float64", "float32", "float32-high", "bfloat16", "float16"), flops)
    return Peaks(every, exact, dict.fromkeys(WORKING_SETS, 1e15))


def results(bench=LINEAR, limits=None, settings=SETTINGS):
    shape = next(iter(bench.shapes))
    return list(Case(bench, shape, torch.float32, settings, limits or peaks()).results())


@pytest.mark.parametrize("option", [["--save"], ["--against", "HEAD"]])
def test_what_needs_a_checkout_says_so(monkeypatch, tmp_path, option):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(UserError, match="are for a checkout of pyops"):
        command.run(parser.parse_args(option))


def test_times_forward_and_backward():
    forward, both = results()
    assert (forward.direction, both.direction) == ("forward", "forward+backward")
    for r in (forward, both):
        assert not r.failure
        assert r.native == "eager"
        assert r.ms > 0
        assert r.ratio_low <= r.ratio <= r.ratio_high
        assert 0 < r.limit < 1
        assert r.kernels
    assert both.gflops * both.ms == pytest.approx(3 * forward.gflops * forward.ms)


def test_a_row_per_layout_where_there_are_images(monkeypatch):
    op = OPS["conv2d"]
    monkeypatch.setattr(pyops.functional, "conv2d", op.native, raising=False)
    found = results(Bench(op, {"tiny": op.shapes["odd"]}, lambda s: 0.0))
    assert [r.layout for r in found] == ["contiguous", "channels_last"] * 2
    assert all(set(r.peers_ms) == {"eager", "channels_last"} for r in found)
    assert all(r.limited_by == "" and math.isnan(r.limit) for r in found)


@pytest.mark.parametrize(
    "slip", [lambda y: y * 1.00001, lambda y: y.double(), lambda y: y[..., :1]]
)
def test_a_wrong_kernel_is_not_timed(monkeypatch, slip):
    native = OPS["linear"].native
    monkeypatch.setattr(pyops.functional, "linear", lambda *args: slip(native(*args)))
    for r in results():
        assert r.failure.startswith("wrong: output0")
        assert math.isnan(r.ms)


def test_a_single_wrong_call_is_seen(monkeypatch):
    native, calls = OPS["linear"].native, itertools.count()
    monkeypatch.setattr(
        pyops.functional, "linear", lambda *a: native(*a) * (1 + 0.5 * (next(calls) == 0))
    )
    case = Case(LINEAR, "tiny", torch.bfloat16, SETTINGS, peaks())
    assert all(r.failure.startswith("wrong: output0") for r in case.results())


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    native = OPS["linear"].native

    def forgets_the_bias(x, weight, bias):
        return native(x, weight, bias.detach()) + 0 * bias

    monkeypatch.setattr(pyops.functional, "linear", forgets_the_bias)
    assert all("grad_bias" in r.failure for r in results())


def test_kinked_gradients_are_checked_where_sums_are_exact(monkeypatch):
    op = OPS["linear_relu"]

    # At zero, and only there, the gradient of this ReLU is one: random inputs never get there.
    def relu_open_at_zero(x, weight, bias):
        y = torch.nn.functional.linear(x, weight, bias)
        return torch.where(y >= 0, y, 0)

    monkeypatch.setattr(pyops.functional, "linear_relu", relu_open_at_zero)
    found = results(Bench(op, {"tiny": dict(n=64, i=16, o=32)}, lambda s: 0.0))
    assert all("wrong: grad_" in r.failure for r in found)


def test_layouts_share_a_reference_and_kinked_gradients_have_their_own(monkeypatch):
    asked = []

    def counted(op, inputs):
        asked.append(inputs.tensors["weight"].requires_grad)
        return reference_of(op, inputs)

    monkeypatch.setattr("pyops.bench.harness.reference_of", counted)
    op = OPS["conv2d_relu"]
    monkeypatch.setattr(pyops.functional, "conv2d_relu", op.native)
    found = results(Bench(op, {"tiny": op.shapes["odd"]}, lambda s: 0.0))
    assert [r.layout for r in found if not r.failure] == ["contiguous", "channels_last"] * 2
    assert asked == [False, True]


def test_a_raising_kernel_fails_its_case_alone(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such tile")

    monkeypatch.setattr(pyops.functional, "linear", broken)
    assert [r.failure for r in results()] == ["wrong: RuntimeError: no such tile"] * 2


def test_a_figure_above_the_limit_fails(monkeypatch):
    low = peaks(flops=1.0)
    monkeypatch.setattr("pyops.bench.harness.measure", lambda device: low)
    for r in results(limits=low):
        assert "above the compute limit" in r.failure


def test_an_algorithm_of_fewer_operations_may_pass_the_direct_one(monkeypatch):
    low = peaks(flops=1.0)
    monkeypatch.setattr("pyops.bench.harness.measure", lambda device: low)
    for r in results(dataclasses.replace(LINEAR, fewest=lambda s: 0.0), limits=low):
        assert r.limit > 1
        assert not r.failure


def test_a_matmul_is_no_limit():
    for r in results(limits=peaks(flops=1.0, exact=False)):
        assert r.limit > 1
        assert not r.failure


def test_a_low_measurement_of_the_limit_is_taken_again(monkeypatch):
    monkeypatch.setattr("pyops.bench.harness.measure", lambda device: peaks())
    limits = peaks(flops=1.0)
    assert not any(r.failure for r in results(limits=limits))
    assert limits.flops["float32"] == 1e15


def test_memory_limit_follows_the_working_set():
    limits = dataclasses.replace(peaks(), bandwidth={1 << 19: 4e11, 1 << 23: 1e11, 1 << 27: 2e11})
    seconds = {
        moved: limits.seconds("float32", 0.0, moved, moved) for moved in (1e5, 1e6, 1e7, 1e9)
    }
    assert seconds[1e5] == {}  # over before a bandwidth could be measured
    assert seconds[1e6] == {"memory": 1e6 / 4e11}
    assert seconds[1e7] == {"memory": 1e7 / 2e11}  # a larger set got more: so can this one
    # Moved many times over, the same set stays in its cache.
    assert limits.seconds("float32", 0.0, 1e9, 1e6) == {"memory": 1e9 / 4e11}
    assert seconds[1e9] == {"memory": 1e9 / 2e11}


def test_jobs_take_turns():
    order = []
    jobs = {name: Job(lambda name=name: order.append(name)) for name in "abc"}
    samples = interleave(jobs, rounds=2, seconds=0.0, clock=HostClock())
    # Twice each to warm up and to size the samples, then the rounds.
    assert "".join(order) == "aabbcc" + "abc" + "bca"
    assert all(len(times) == 2 for times in samples.values())


@pytest.mark.parametrize(("rounds", "taken"), [(3, 3), (100, LEAST_ROUNDS)])
def test_a_spent_budget_ends_a_comparison_once_a_median_can_be_had(rounds, taken):
    samples = interleave({"a": Job(lambda: None)}, rounds, 0.0, HostClock(), budget=0.0)
    assert len(samples["a"]) == taken


def test_float32_can_be_timed_at_another_precision(monkeypatch):
    native, seen = OPS["linear"].native, set()

    def linear(*args):
        seen.add(torch.get_float32_matmul_precision())
        return native(*args)

    monkeypatch.setattr(pyops.functional, "linear", linear)
    case = Case(LINEAR, "tiny", torch.float32, SETTINGS, peaks(), "high")
    assert [r.dtype for r in case.results()] == ["float32-high"] * 2
    assert seen == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_imports_leave_random_numbers_as_they_are():
    before = torch.get_rng_state()
    importlib.reload(bench_models)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_peers_are_skipped_with_a_reason():
    found = results(settings=dataclasses.replace(SETTINGS, peers=("no_such_backend",)))
    assert all("no_such_backend" in r.skipped["no_such_backend"] for r in found)


def test_summary_and_documents(tmp_path):
    found = [
        Result("linear", name, "float32", "forward", "contiguous", "avx2", "avx2", ms=1.0,
               native="eager", native_ms=ratio, ratio=ratio, ratio_low=ratio, ratio_high=ratio,
               limit=0.5, limited_by="compute", gflops=10.0, intensity=3.0)
        for name, ratio in (("a", 4.0), ("b", 1.0))
    ]  # fmt: skip
    found.append(dataclasses.replace(found[0], shape="c", ratio=math.nan, ms=math.nan, failure="x"))
    lines = goals.table(found)
    assert lines[0][:7] == (
        "linear, fewer rows",
        "float32",
        "forward",
        "ratio",
        "2",
        "2.00",
        "1.00",
    )
    assert lines[0][7].startswith("linear, b, ")
    assert lines[-1][0] == "all"
    write_json(tmp_path / "found.json", report.document(found, peaks(), {"processor": "some"}))
    document = json.loads((tmp_path / "found.json").read_text())
    assert [r["ratio"] for r in document["results"]] == [4.0, 1.0, None]
    text = report.markdown(found, peaks(), {"processor": "some"})
    assert "| linear, fewer rows | float32 | forward | ratio | 2 | 2.00 | 1.00 |" in text
    assert "- processor: some" in text


def test_command_writes_json_and_png(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", lambda device: peaks())
    monkeypatch.setattr(command, "QUICK", SETTINGS)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    json_file, *pictures = (tmp_path / name for name in ("a.json", "a.png", "b.png"))
    args = ["call_overhead", "--quick", "--only", "^linear/", "--dtype", "float32"]
    files = ["--json", json_file, "--png", pictures[0], "--roofline", pictures[1]]
    pytest.importorskip("matplotlib")
    assert command.run(parser.parse_args([*args, *map(str, files)])) == 0
    assert {r["op"] for r in json.loads(json_file.read_text())["results"]} == {"linear"}
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "minimum" in capsys.readouterr().out
    with pytest.raises(UserError, match="'\\[' is no regular expression"):
        command.run(parser.parse_args(["--quick", "--only", "["]))


def test_unwritable_results_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measure", pytest.fail)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "file" / "results")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(UserError, match="cannot write"):
        command.run(parser.parse_args(["--save"]))


def test_an_interrupt_shows_what_was_timed(monkeypatch, capsys):
    def timed(case):
        if case.bench.op.name == "linear_relu":
            raise KeyboardInterrupt
        return iter([case._result("forward", "contiguous", "some_kernel", failure="untimed")])

    monkeypatch.setattr(command, "measure", lambda device: peaks())
    monkeypatch.setattr(Case, "results", timed)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(KeyboardInterrupt):
        command.run(parser.parse_args(["linear_relu", "--dtype", "float32"]))
    assert "some_kernel" in capsys.readouterr().out


def test_threads_are_at_least_one(capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--threads", "0"])
    assert "argument --threads: must be at least 1, got 0" in capsys.readouterr().err


def test_kept_results_are_drawn_again(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    some = next(readme.RESULTS.glob("*-threads.json"))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    readme.README.write_text(f"{readme.BEGIN}{readme.END}")
    (tmp_path / some.name).write_text(some.read_text())
    readme.main()
    assert " below 1:\n" in readme.README.read_text()
    for name in (f"{some.stem}.png", f"{some.stem}-roofline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


RUN = """
import json, sys
ratio = {ratio}
cases = [{{"op": "f", "shape": "s", "dtype": "float32", "direction": "forward",
           "layout": "contiguous", "ratio": ratio}}]
json.dump({{"results": cases}}, open(sys.argv[sys.argv.index("--json") + 1], "w"))
"""


def test_revisions_are_compared_by_their_ratios_to_native(tmp_path, monkeypatch, capsys):
    def git(*words):
        who = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(("git", *who, *words), cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "setup.py").write_text("")
    for ratio in (2.0, 3.0):
        (tmp_path / "times.py").write_text(RUN.format(ratio=ratio))
        git("add", ".")
        git("commit", "-m", "a revision")
    monkeypatch.setattr(sys, "orig_argv", ["python", "times.py", "--against", "HEAD~1", "--quick"])
    assert against.compare_revisions("HEAD~1", tmp_path) == 0
    assert capsys.readouterr().out.split()[-4:] == ["contiguous", "2.00", "3.00", "1.50"]
    worktrees = subprocess.run(
        ("git", "worktree", "list"), cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert len(worktrees.stdout.splitlines()) == 1
    with pytest.raises(UserError, match="git worktree add"):
        against.compare_revisions("no-such-revision", tmp_path)


def test_every_file_has_cases_that_native_takes():
    for name in set(command.files()) - {"models"}:
        for bench in command.collect([name]):
            for device in ("cpu", "cuda"):
                for shape in bench.shapes_on(device).values():
                    inputs = bench.op.draw(lambda *size: torch.empty(size, device="meta"), **shape)
                    if bench.op.name in ("lstm", "gru"):  # step by step without data, for minutes
                        lengths = shape.get("lengths", ())
                        assert lengths == tuple(sorted(lengths, reverse=True))
                        assert len(lengths) in (0, shape["b"])
                    else:
                        assert all(o.numel() for o in bench.op.run(bench.op.native, inputs))
                    assert bench.flops(shape) >= 0
                    assert bench.backward > 0
