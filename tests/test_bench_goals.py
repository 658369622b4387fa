"""What a run is held against: goals, other runtimes, caps on native; and the README's table."""

import argparse
import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch

from pyops import _C
from pyops.bench import caps, command, goals, peers, readme, runtimes
from pyops.bench.harness import DIRECTIONS, Case, Result
from pyops.bench.peaks import Peaks
from pyops.cases import OPS
from pyops.cli import UserError

ROW = Result(
    "max_pool2d", "a", "float32", "forward", "contiguous", "amx", "amx", ms=1.0, native="inductor",
    native_ms=2.0, ratio=2.0, ratio_low=2.0, ratio_high=2.0, limit=0.8, limited_by="memory",
    gflops=0.0, intensity=0.0, peers_ms={"eager": 12.0, "inductor": 2.0},
)  # fmt: skip


def lines(*results):
    """The goals' part of each line, by cases and measure."""
    return {(line[0], line[3]): (line[5], *line[8:]) for line in goals.table(results)}


def test_a_row_is_held_against_each_of_its_goals():
    slow = dataclasses.replace(ROW, shape="b", limit=0.2, ratio=0.5)
    pooling = "max_pool2d, contiguous"
    assert lines(ROW, slow) == {
        (pooling, "ratio"): ("1.00", "", ""),
        (pooling, "ratio to eager"): ("12.00", "≥ 10", "yes"),
        (pooling, "share of limit"): ("0.40", "≥ 0.7", "no"),
        ("all", "ratio"): ("1.00", "≥ 1 at all", "no"),
    }
    failed = dataclasses.replace(ROW, shape="c", ratio=math.nan, ms=math.nan, failure="wrong")
    assert goals.table([failed]) == []
    assert lines(ROW, failed) == lines(ROW)


@pytest.mark.parametrize(("isa", "goal"), [("avx512", 1.2), ("avx2", 1.0)])
def test_with_fewer_instructions_the_whole_has_a_goal(isa, goal):
    found = lines(dataclasses.replace(ROW, isa=isa, ratio=1.1))
    assert found["max_pool2d, contiguous", "ratio"] == ("1.10", "", "")
    assert found["all", "ratio"] == ("1.10", f"≥ {goal:g}", "yes" if goal <= 1.1 else "no")


def test_every_goal_has_cases_and_only_models_and_single_convolutions_have_none():
    rows = set()
    for name in set(command.files()) - {"models"}:
        for bench in command.collect([name]):
            for shape, sizes in bench.shapes_on("cpu").items():
                for layout in ("contiguous", "channels_last"):
                    for dtype in command.FULL_DTYPES:
                        head = (bench.op.name, shape, dtype, "forward", layout, "", "amx", sizes)
                        rows.add((goals.cases_of(Result(*head)), dtype))
    assert goals.AMX.keys() <= rows
    others = {row for row, _ in rows - goals.AMX.keys()}
    assert others == {"conv2d", "tiny calls", "attention of one query"}
    assert set(goals.MEASURES) == {"ratio"} | {g.measure for own in goals.AMX.values() for g in own}


def test_typical_shapes_are_a_part_of_the_grid():
    for bench in command.collect(["conv2d", "linear_relu", "max_pool2d", "attention", "rnn"]):
        typical, full = (bench.shapes_on("cpu", full=full) for full in (False, True))
        assert list(full)[: len(typical)] == list(typical)
        assert len(full) > len(typical)
        assert bench.shapes_on("cuda") == bench.gpu_shapes


@pytest.mark.parametrize(("words", "minutes"), [((), command.MINUTES), (("--full",), math.inf)])
def test_a_run_is_short_unless_asked_for_more(monkeypatch, words, minutes):
    monkeypatch.setattr(command, "measure", lambda device: Peaks())
    monkeypatch.setattr(Case, "results", lambda case: iter(()))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["max_pool2d", *words])
    assert command.run(args) == 0
    assert args.minutes == minutes


def test_groups_of_peers_have_names():
    named = command._peers(["native,compile", "openvino", "eager"])
    assert named == ("eager", "channels_last", "inductor", "openvino")
    with pytest.raises(UserError, match=r"peer must be one of native, compile, eager, .* 'foo'"):
        command._peers(["native", "foo"])


@pytest.mark.skipif(_C.isa_detected() == "scalar", reason="nothing to cap")
def test_native_is_capped_as_ours_is(tmp_path):
    assert caps.missing(None, {}) == caps.missing(_C.isa_detected(), {}) == {}
    assert caps.missing("scalar", {"ONEDNN_MAX_CPU_ISA": "AVX"}).keys() == {
        "ATEN_CPU_CAPABILITY",
        "MKL_ENABLE_INSTRUCTIONS",
    }
    results = tmp_path / "results.json"
    case = ["call_overhead", "--quick", "--only", "^linear/", "--dtype", "float32"]
    command = [sys.executable, "-m", "pyops", "bench", *case, "--isa", "scalar", "--json", results]
    subprocess.run(command, check=True, capture_output=True)
    facts = json.loads(results.read_text())["machine"]
    assert facts["native's instruction set"].startswith("DEFAULT, ATEN_CPU_CAPABILITY=default")
    assert facts["ISA"].startswith("scalar in use")


@pytest.mark.parametrize("scale", [1.0, 1.001])
def test_a_runtime_is_checked_and_given_the_memory_itself(monkeypatch, scale):
    op = OPS["linear"]
    inputs = op.inputs(op.shapes["odd"], torch.float32)
    given = []

    def fake(model, activations, results):
        given.extend(activations)
        weights = [inputs.tensors[name] for name in ("weight", "bias")]
        return lambda: results[0].copy_(scale * op.native(*activations, *weights))

    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", fake)
    monkeypatch.setattr(runtimes, "_onnx", lambda op, inputs: b"")
    jobs, skipped = peers.natives(op, inputs, "forward", ("openvino",))
    assert [t.data_ptr() for t in given] == [inputs.tensors["input"].data_ptr()]
    if scale == 1.0:
        assert set(jobs) == {"eager", "openvino"}
    else:
        assert skipped["openvino"].startswith("ValueError: wrong: output0: l2 error")
    jobs, skipped = peers.natives(op, inputs, "forward+backward", ("openvino",))
    assert set(jobs) == {"eager"} and not skipped  # there is nothing to differentiate in them


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
@pytest.mark.parametrize("name", ["conv2d_relu_max_pool2d", "lstm", "linear"])
def test_runtimes_do_the_same_job(runtime, name):
    for package in (runtime, "onnx", "onnxscript"):
        pytest.importorskip(package)
    op = OPS[name]
    jobs, skipped = peers.natives(
        op, op.inputs(op.shapes["odd"], torch.float32), "forward", (runtime,)
    )
    assert set(jobs) == {"eager", runtime}, skipped


def test_what_a_graph_would_fold_into_a_constant_is_no_peer():
    op = OPS["gru"]
    inputs = op.inputs(op.shapes["packed"], torch.float32)
    with pytest.raises(ValueError, match="tensors of integers"):
        runtimes.runtime_call("openvino", op, inputs)


def test_the_readme_says_what_the_results_say():
    text = readme.README.read_text()
    assert readme.updated(text) == text, "python -m bench.readme"
    for path in sorted(readme.RESULTS.glob("*-threads.json")):
        machine, results, _ = readme.load(path)
        assert machine["processor"] in text
        assert {r.direction for r in results} == set(DIRECTIONS)
