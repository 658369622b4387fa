"""Every test runs deterministic, on NaN-filled memory; a failing one says how to run it again.

What is marked `cuda` runs where there is a GPU: `pytest -m cuda` is that half of the suite.
"""

import os
import shutil
import sys
import tempfile

import pytest
import torch

import pyops

pytest.register_assert_rewrite("suite", "judging", "composition")  # asserts as in tests

# With both, torch.empty returns NaN (and the largest integer), so that a result which depends on
# memory nobody wrote shows.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS asks for it
# On a GPU some of native's operators, which ours are compared with, have no deterministic gradient.
torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
# There native convolves float32 in TF32, where it finds such a kernel: no measure of our error.
torch.backends.cudnn.allow_tf32 = False
torch.utils.deterministic.fill_uninitialized_memory = True
pyops._C.poison_scratch(True)
torch.set_num_threads(1)  # pytest-xdist uses the cores; test_threads has its own number
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each of its workers had a pool else


def pytest_configure(config):
    # Inductor's cache does not see that a schema of ours changed. The workers of xdist share one.
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items):
    # First what names the kernel that is wrong, before all that goes wrong with it.
    items.sort(key=lambda item: item.path.stem not in ("test_kernel_calls", "test_cuda_kernels"))
    missing = ""
    if not torch.cuda.is_available():
        missing = "no CUDA device"
    elif not pyops._C.build_info()["cuda"]:
        missing = "built without CUDA kernels"
    for item in items if missing else ():
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture
def precision(request):
    """Of float32 products, as `torch.set_float32_matmul_precision` has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        cap = f"PYOPS_ISA={os.environ['PYOPS_ISA']} " if "PYOPS_ISA" in os.environ else ""
        report.sections.append(("reproduce", f"{cap}pytest '{item.nodeid}'"))
        if item.get_closest_marker("cuda"):
            leave_a_lost_gpu(report)


def leave_a_lost_gpu(report):
    """After an illegal access every later call of this process fails: let another one go on.

    xdist counts the test as failed and begins a new worker; alone, the run ends here.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{report.longreprtext}\n{report.nodeid}: {error}", file=sys.__stderr__, flush=True)
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the GPU is lost to this process: {report.nodeid}", returncode=1)
