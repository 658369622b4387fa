"""`.ci/gpu.py`: what its stages make of what their programs leave, without a GPU."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gpu
import programs
import sanitizer
from programs import Outcome

FACTS = {"gpu": "Some GPU 90GB", "torch": "2.11", "memory": 64 << 30}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Logs and results go to a folder of the test."""
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(programs, "OUT", tmp_path / "build")
    monkeypatch.setattr(programs, "SITE", tmp_path / "build" / "site")
    return tmp_path


def options(*words):
    return gpu._parser().parse_args(words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line():
    program = [sys.executable, gpu.__file__]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpu: no GPU that torch ") and done.stderr.count("\n") == 1


def test_without_torch_it_says_so(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "no PyTorch that works" in gpu.find_gpu()["problem"]
    assert "libcudart.so.13 is missing" in gpu.find_gpu()["problem"]


@pytest.fixture
def stages(monkeypatch, elsewhere):
    """Stages that take no time; a test says how each ends. Their shares of the time are kept."""
    ends, seconds = {}, {}

    def stage(name):
        def run(args, facts, share):
            seconds[name] = share
            return [Outcome(name, ends.get(name, "passed"))]

        return run

    monkeypatch.setattr(gpu, "find_gpu", lambda: dict(FACTS))
    monkeypatch.setattr(programs, "ROOT", elsewhere)
    table = Path(gpu.__file__).parent.parent / "pyops" / "cli" / "table.py"
    (elsewhere / "pyops" / "cli").mkdir(parents=True)
    (elsewhere / "pyops" / "cli" / "table.py").write_text(table.read_text())
    (elsewhere / "bench").mkdir()
    for name in gpu.STAGES:
        monkeypatch.setitem(gpu.STAGES, name, stage(name))
    return ends, seconds


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({}, 0),
        ({"build": "failed"}, 1),
        ({"test": "out of time"}, 1),
        ({"sanitize": "unavailable"}, 0),
    ],
)
def test_a_failing_stage_stops_no_other(stages, capsys, ends, code):
    stages[0].update(ends)
    assert gpu.main([]) == code
    assert list(stages[1]) == ["build", "test", "sanitize", "bench"]
    output = capsys.readouterr().out
    assert all(word in output for word in ends.values())
    assert "results in bench/results/some-gpu-90gb.json" in output


def test_stages_share_the_time_that_is_left(stages):
    gpu.main(["--minutes", "9"])
    seconds = stages[1]
    assert seconds["build"] > 480
    assert seconds["test"] == pytest.approx(540 * 4 / 9, rel=0.01)
    assert seconds["bench"] == pytest.approx(540, rel=0.01)  # the others took none of it
    gpu.main(["--stage", "test", "--minutes", "2"])
    assert seconds["test"] == pytest.approx(120, rel=0.01)


def test_results_of_other_stages_stay(stages, elsewhere):
    ends, _ = stages
    gpu.main([])
    ends["test"] = "failed"
    gpu.main(["--stage", "test"])
    gpu.main(["--stage", "bench", "--only", "rnn"])
    results = elsewhere / "bench" / "results"
    whole = json.loads((results / "some-gpu-90gb.json").read_text())["stages"]
    assert {name: stage["result"] for name, stage in whole.items()} == {
        "build": "passed", "test": "failed", "sanitize": "passed", "bench": "passed",
    }  # fmt: skip
    part = json.loads((results / "some-gpu-90gb-rnn.json").read_text())
    assert list(part["stages"]) == ["bench"]
    assert part["machine"] == FACTS


@pytest.mark.parametrize("background", [False, True])
def test_a_program_that_is_out_of_time_may_write_down_what_it_has(background):
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler
    )
    code = """
import signal, subprocess, sys, time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    try:
        assert programs.run([sys.executable, "-c", code], "log", 2.0) is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert programs.last_lines("log") == ["begun", "interrupted"]


def test_one_that_does_not_listen_is_killed_with_its_children(monkeypatch):
    monkeypatch.setattr(programs, "GRACE", 0.2)
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    assert programs.run([sys.executable, "-c", code], "log", 2.0) is None
    child = Path("/proc", programs.last_lines("log")[0], "status")
    for _ in range(100):
        if not child.exists() or "State:\tZ" in child.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_programs_see_this_checkout_what_was_installed_and_the_toolkit(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    code = "import os; print(os.environ['PATH'], os.environ['PYTHONPATH'], os.getcwd())"
    for before, then in (("", ""), ("/elsewhere", ":/elsewhere")):
        monkeypatch.setenv("PYTHONPATH", before)
        assert programs.run([sys.executable, "-c", code], "log", 60) == 0
        places, modules, folder = programs.last_lines("log")[0].split()
        assert places.startswith(f"{programs.SITE}/bin:") and places.endswith(
            ":/usr/local/cuda/bin"
        )
        assert (modules, folder) == (f"{programs.ROOT}:{programs.SITE}{then}", str(programs.ROOT))


TESTS = """
import pytest
class TestSome:
    @pytest.mark.parametrize("n", [1, 2])
    def test_number(self, n):
        assert n == 1, "it is two\\nand more"
def test_absent():
    pytest.skip("no CUDA device")
@pytest.fixture
def broken():
    raise RuntimeError("no such fixture")
def test_error(broken):
    pass
"""


def test_tests_are_counted_and_named(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    results = tmp_path / "results.xml"
    command = ["-q", "-o", "junit_family=xunit1", f"--junitxml={results}", "-p", "no:cacheprovider"]
    program = [sys.executable, "-m", "pytest", *command]
    subprocess.run(program, cwd=tmp_path, capture_output=True, timeout=100)
    summary, problems = gpu.read_tests(results)
    assert summary == "1 passed, 2 failed, 1 skipped"
    assert problems[0] == "test_some.py::TestSome::test_number[2]: AssertionError: it is two"
    assert problems[1].startswith("test_some.py::test_error: ")


def test_benchmarks_are_counted_and_each_operator_has_its_least():
    def result(op, ratio, failure=""):
        return {"op": op, "shape": f"s{ratio}", "dtype": "float32", "direction": "forward",
                "layout": "contiguous", "ratio": ratio, "failure": failure}  # fmt: skip

    rows = [result("f", 2.0), result("f", 0.5), result("f", 1.5), result("g", None, "wrong: x")]
    summary, problems, parts = gpu.read_bench({"results": rows, "not timed": 7})
    assert summary == "3 timed, 1 slower than native, 7 cases not reached"
    assert problems == ["g sNone float32 forward contiguous: wrong: x"]
    assert [(p.stage, p.summary) for p in parts] == [
        ("f", "median 1.50 of 3, least 0.50 at s0.5, float32, forward, contiguous")
    ]


DYING = """
import os, pytest, time
@pytest.mark.parametrize("n", range(16))
def test_number(n):
    if n in (2, 5):
        os._exit(1)
    if n == 9:
        time.sleep(60)
"""


def test_tests_go_on_when_processes_die(monkeypatch, tmp_path):
    """As many as there are workers, and one that waits for ever."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    (tmp_path / "test_dying.py").write_text("import pytest\npytestmark = pytest.mark.cuda" + DYING)
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "PATIENCE", 2)
    (outcome,) = gpu.test(options(), {"memory": 2 * gpu.MEMORY_PER_WORKER}, 100)
    assert (outcome.result, outcome.summary) == ("failed", "13 passed, 3 failed")
    assert all("crashed while running" in problem for problem in outcome.problems)


WAITING = """
import pytest, time
@pytest.mark.parametrize("n", ["a", "b c"])
def test_number(n):
    assert n == "a"
@pytest.mark.parametrize("n", ["d e"])
def test_waiting(n):
    time.sleep(60)
"""


def test_what_was_under_way_when_time_was_over_is_named(monkeypatch, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\naddopts = -q\n")
    code = "import pytest\npytestmark = pytest.mark.cuda" + WAITING
    (tmp_path / "test_waiting.py").write_text(code)
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    (outcome,) = gpu.test(options(), {"memory": 2 * gpu.MEMORY_PER_WORKER}, 10)
    assert outcome.result == "out of time"
    assert outcome.summary == "1 passed, 1 failed, 1 unfinished"
    assert outcome.problems == [
        "test_waiting.py::test_waiting[d e]: under way when time was over",
        "test_waiting.py::test_number[b c]: AssertionError: assert 'b c' == 'a'",
    ]


def test_a_stage_that_leaves_nothing_shows_how_it_ended(monkeypatch):
    monkeypatch.setattr(
        gpu, "run", lambda command, log, *a, **k: (programs.OUT / log).write_text("oh\n")
    )
    for stage, problem in ((gpu.test, "oh"), (gpu.bench, "rnn: oh")):
        (outcome,) = stage(options("--only", "rnn"), FACTS, 60)
        assert outcome.result == "failed"
        assert "no results" in outcome.summary and outcome.problems == [problem]


def test_an_operator_whose_kernel_never_ends_keeps_no_other_from_being_timed(monkeypatch):
    seconds = []

    def run(command, log, share):
        seconds.append(share)
        op = command[4]
        (programs.OUT / log).write_text(f"{op} begun\n")
        if op == "conv2d":
            return None
        row = {"op": op, "shape": "s", "dtype": "float32", "direction": "forward",
               "layout": "contiguous", "ratio": 2.0, "failure": ""}  # fmt: skip
        document = {"machine": {}, "peaks": {}, "results": [row], "not timed": 3}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(document))
        return 0

    monkeypatch.setattr(gpu, "run", run)
    outcome, *parts = gpu.bench(options(), FACTS, 300)
    assert seconds[0] == pytest.approx(60 + 2 * programs.GRACE, rel=0.01)
    assert seconds[-1] == pytest.approx(300 + 2 * programs.GRACE, rel=0.01)  # nobody took any
    assert outcome.result == "out of time" and outcome.problems == ["conv2d: conv2d begun"]
    assert outcome.summary == "4 timed, 0 slower than native, 12 cases not reached"
    assert [part.stage for part in parts] == [op for op in gpu.OPERATORS if op != "conv2d"]
    document = json.loads((programs.OUT / "bench.json").read_text())
    assert len(document["results"]) == 4 and "peaks" in document


def test_only_narrows_every_stage(monkeypatch):
    seen = {}
    monkeypatch.setattr(gpu, "run", lambda command, log, *a, **k: seen.update({log: command}) or
                        (programs.OUT / log).write_text(CLEAN) * 0)  # fmt: skip
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: name)
    args = options("--only", "rnn", "conv2d")
    for stage in (gpu.test, gpu.sanitize, gpu.bench):
        stage(args, FACTS, 60)
    tests = seen["tests.log"]
    assert tests[tests.index("-k") + 1] == "rnn or lstm or gru or conv2d"
    assert int(tests[tests.index("-n") + 1]) == min(os.cpu_count(), 16)  # of 64 GiB
    assert tests[tests.index("--timeout-method") + 1] == "thread"
    assert not set(gpu.KERNELS) & set(tests)
    gpu.test(options("--kernels"), FACTS, 60)
    assert {*gpu.KERNELS} <= {*seen["tests.log"]} and Path(programs.ROOT, *gpu.KERNELS).exists()
    for tool in sanitizer.TOOLS:
        assert seen[f"{tool}.log"][-5:] == ["--only", "rnn", "lstm", "gru", "conv2d"]
    assert [log for log in seen if "bench" in log] == ["bench-rnn.log", "bench-conv2d.log"]
    assert {"rnn", "--device", "cuda", "--minutes"} <= set(seen["bench-rnn.log"])


CLEAN = """\
========= COMPUTE-SANITIZER
{"calls": 17, "not served": {}}
========= ERROR SUMMARY: 0 errors
"""
INVALID = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void pyops::<unnamed>::conv2d_forward_kernel<float>(pyops::Conv2dParams)+0x4f0
=========     by thread (0,0,0) in block (1,0,0)
=========     Access at 0x7f3c7ec000fc is out of bounds
=========
========= Invalid __global__ write of size 4 bytes
=========     at void pyops::<unnamed>::conv2d_forward_kernel<float>(pyops::Conv2dParams)+0x4f0
=========     by thread (1,0,0) in block (1,0,0)
=========
========= ERROR SUMMARY: 64 errors
========= ERROR SUMMARY: 62 errors were not printed. Use --print-limit option to adjust the number of printed errors
"""  # noqa: E501
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at pyops::rnn_backward_kernel(float *)+0x580
=========     and Read access at pyops::rnn_backward_kernel(float *)+0x890 [4080 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
ELSEWHERE = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::reduce_kernel<512>(at::native::ReduceOp)+0x70
=========     by thread (31,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 3 errors
"""
CUTLASS = """\
========= COMPUTE-SANITIZER
========= Barrier error detected. Divergent thread(s) in block
=========     at void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal>(T1::Params)+0x10
========= ERROR SUMMARY: 1 error
"""
UNSUPPORTED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section
"""


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (CLEAN, 0, ("passed", "clean")),
        (CLEAN, 1, ("failed", "the program ended with 1")),
        (INVALID, 86, ("failed",
                       "Invalid __global__ write of size 4 bytes in conv2d_forward_kernel (2)")),
        (RACE, 86, ("failed", "Error: Race in rnn_backward_kernel (1)")),
        (ELSEWHERE, 86, ("passed", "3 outside our kernels")),
        (CUTLASS, 86, ("failed", "Barrier error detected. Divergent thread(s) in block in "
                                 "device_kernel (1)")),
        (UNSUPPORTED, 1, ("unavailable", UNSUPPORTED.splitlines()[1].removeprefix("========= "))),
        ("Killed\n", -9, ("failed", "it ended without a summary")),
    ],
    ids=["clean", "program", "memcheck", "racecheck", "initcheck", "synccheck", "absent", "killed"],
)  # fmt: skip
def test_reports_of_the_sanitizer(text, code, expected):
    assert sanitizer.parse(text).verdict(code) == expected


def test_initcheck_sees_every_kernel_and_the_others_ours():
    for tool in sanitizer.TOOLS:
        command = sanitizer.command(tool, ["python", "calls.py"])
        assert command[:3] == ["compute-sanitizer", "--tool", tool]
        assert command[-2:] == ["python", "calls.py"]
        assert ("kns=pyops" in command) == (tool != "initcheck")


def test_operators_are_the_benchmarks_and_the_kernels():
    from kernel_calls import CALLS
    from pyops.bench.command import files

    assert set(gpu.OPERATORS) == set(files()) - {"models", "call_overhead"}
    prefixes = tuple(word for words in gpu.OPERATORS.values() for word in words)
    assert [call for call in CALLS if not str(call).startswith(prefixes)] == []
    assert isinstance(options(), argparse.Namespace)
