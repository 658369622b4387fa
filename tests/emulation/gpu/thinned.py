"""Which tests an emulated GPU runs: `pytest -p thinned --thin N`."""

import re

MANY = 100  # tests of a file
# What tests' names contain, and why these do not run here.
LEFT_OUT = {
    r"inductor": "it writes kernels in Triton",
    r"gives_the_same_bits_again": "1000 calls: test_emulated_gpu.py makes three",
    r"long_sequences": "a GPU of 132 processors takes them at once",
    r"learns_a_batch|namespaces_agree": "minutes: test_trainer.py takes a step of every model",
    r"(demo|trains)_on_a_gpu": "minutes, most of them to measure speeds",
    r"float32_on_tensor_cores.at once": "32 processors do not hold its weights",
    r"copies_compute_the_same": "PyTorch without CUDA loads nothing to its memory",
    r"whole_transformer.inference": "native makes nested tensors, which lie in no strides",
    r"float32_on_tensor_cores.*-high": "native's products have no TF32 here",
}


def pytest_addoption(parser):
    """`--thin N`: of a file with many tests every Nth, N best a prime."""
    parser.addoption("--thin", type=int, default=1, help="every Nth test of long files")


def pytest_collection_modifyitems(config, items):
    """Without the tests of LEFT_OUT, and thinned."""
    thin, left_out, files = config.getoption("--thin"), re.compile("|".join(LEFT_OUT)), {}
    for item in items:
        if item.get_closest_marker("cuda") and not left_out.search(item.name):
            files.setdefault(item.path, []).append(item)
    kept = [t for tests in files.values() for t in tests[:: thin if len(tests) > MANY else 1]]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept
