"""Into how many tasks attention's backward deals the keys of a head, for any number of threads."""

import ctypes

import pytest

import pyops
from host import library


@pytest.mark.skipif(pyops._C.isa_detected() == "scalar", reason="no avx2 here")
def test_few_splits_keep_the_threads_busy():
    """Each split sums a gradient of all queries: 63 heads on 64 threads are no reason for 64."""
    splits = library("attention_splits.cpp", "-mavx2", "-mfma", "-mf16c").splits
    splits.argtypes, splits.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_int64

    def busy(threads, tasks):
        return tasks / (threads * -(-tasks // threads))

    for threads in (1, 2, 3, 6, 8, 28, 64, 96):
        for units in range(1, 130):
            ours = splits(threads, units)
            few = [n for n in range(1, threads + 1) if busy(threads, n * units) >= 0.9]
            assert ours == few[0], (threads, units)
    assert splits(64, 63) == 1
