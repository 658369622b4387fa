"""Tests that are known to fail, each with what is missing: they run, and are reported as xfailed.

A pattern matches a test's id as the shell would, brackets written as parentheses. Mending a gap
means deleting its line.
"""

_META = "meta gradients have strides of their own; packed batch_sizes have no data there"
_INFINITE = "gradients of infinite inputs are NaN in other places than native's"

KNOWN_GAPS = {
    "tests/test_rnn.py::TestLstm::test_autocast(*": "autocast gradients err more than native's",
    "tests/test_rnn.py::*::test_meta(*": _META,
    "tests/test_rnn.py::*::test_nonfinite(float32-*": _INFINITE,
    "tests/test_rnn.py::TestGru::test_changed_after_saving(*": "changes are not seen",
    "tests/test_attention.py::TestAttention::test_meta(*": _META,
    "tests/test_attention.py::TestAttention::test_nonfinite(*": _INFINITE,
    "tests/test_moduleinfo.py::test_error_samples(*Cell)": "another exception than native's",
}
