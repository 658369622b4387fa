"""Every test runs deterministic, on NaN-filled memory; a failing one says how to run it again."""

import os

import pytest
import torch

import pyops

pytest.register_assert_rewrite("suite", "judging", "composition")  # asserts as in tests

# With both, torch.empty returns NaN (and the largest integer), so that a result which depends on
# memory nobody wrote shows.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS asks for it
# On a GPU some of native's operators, which ours are compared with, have no deterministic gradient.
torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
torch.utils.deterministic.fill_uninitialized_memory = True
pyops._C.poison_scratch(True)
torch.set_num_threads(1)  # pytest-xdist uses the cores; test_threads has its own number


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        cap = f"PYOPS_ISA={os.environ['PYOPS_ISA']} " if "PYOPS_ISA" in os.environ else ""
        report.sections.append(("reproduce", f"{cap}pytest '{item.nodeid}'"))
