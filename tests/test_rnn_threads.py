"""What the threads of the CUDA kernels of recurrent layers compute, run by the CPU."""

import ctypes
from itertools import product

import pytest
import torch

from host import int64s, library
from recurrent import GATES
from rnn_launches import LAUNCHES, Launch, Layer
from suite import DTYPES, HALF

TOLERANCE = dict(zip(DTYPES, (1e-12, 1e-5, 0.03, 0.004), strict=True))
# Sequences at each step, and the features of input, hidden state and output.
SHAPES = {
    "one of each": ([1], 1, 1, 1),
    "a cell": ([5], 3, 7, 7),
    "padded": ([3, 3, 3, 3], 5, 6, 6),
    "packed": ([4, 3, 3, 1], 5, 17, 17),
    "ended early": ([2, 1, 0], 2, 3, 3),
    "tiles": ([66, 65, 1], 18, 33, 33),
    "projected": ([4, 3, 3, 1], 5, 9, 4),
    "projected tiles": ([65, 64], 3, 20, 70),
    "no steps": ([], 3, 4, 4),
    "no sequences": ([0, 0], 3, 4, 4),
    "no input": ([2, 1], 0, 3, 3),
}
CASES = [
    pytest.param(kind, *shape, id=f"{kind} {name}")
    for kind, (name, shape) in product(GATES, SHAPES.items())
    if kind == "lstm" or shape[2] == shape[3]
]


def assert_close(mine, right):
    error, scale = (mine.double() - right).norm(), right.norm()
    assert mine.shape == right.shape
    assert error <= TOLERANCE[mine.dtype] * scale, (float(error), float(scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
@pytest.mark.parametrize("kind, sizes, i, h, r", CASES)
def test_both_directions_are_the_loop(kind, sizes, i, h, r, reverse, dtype):
    layer = Layer(kind, sizes, i, h, r, reverse, dtype)
    grads = [torch.randn(t.shape).to(dtype) for t in layer.outputs]
    outputs, gradients = layer.expected(grads)
    if sizes:  # without steps the states are handed on by who has them
        for mine, right in zip(layer.forward(), outputs, strict=True):
            assert_close(mine, right)
    else:
        layer.reserve = layer.accumulated(0, 0)
    for mine, right in zip(layer.backward(grads, [True] * 8), gradients, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            assert_close(mine, right)


@pytest.mark.parametrize("kind, r", [("lstm", 6), ("lstm", 4), ("gru", 6)])
def test_nothing_kept_gives_the_same(kind, r):
    layer = Layer(kind, [3, 3, 2], 5, 6, r, False, torch.float32)
    kept = [t.clone() for t in layer.forward()]
    for mine, right in zip(layer.forward(save=False), kept, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("kind, r", [("lstm", 6), ("lstm", 4), ("gru", 6)])
@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
def test_gradients_that_are_absent_or_not_wanted(kind, r, reverse):
    """Of one output at a time, to one input at a time; without biases too."""
    for bias in (True, False):
        layer = Layer(kind, [3, 3, 2], 5, 6, r, reverse, torch.float64, bias)
        layer.forward()
        for output, y in enumerate(layer.outputs):
            grads = [
                torch.randn_like(y) if k == output else None for k in range(len(layer.outputs))
            ]
            _, expected = layer.expected(grads)
            for source in range(8):
                wanted = [k == source for k in range(8)]
                mine = layer.backward(grads, wanted)[source]
                if mine is not None:
                    assert_close(mine, expected[source])


def assert_launches_are_the_loop(layer, forward, backward):
    """Outputs, and every gradient, by one launch there and one back."""
    grads = [torch.randn(t.shape).to(layer.dtype) for t in layer.outputs]
    outputs, gradients = layer.expected(grads)
    for mine, right in zip(layer.forward(launch=forward), outputs, strict=True):
        assert_close(mine, right)
    results = layer.backward(grads, [True] * 8, backward)
    for mine, right in zip(results, gradients, strict=True):
        assert mine is None or assert_close(mine, right) is None
    without_states = layer.backward(grads, [k not in (1, 2) for k in range(8)], backward)
    for k, (mine, right) in enumerate(zip(without_states, results, strict=True)):
        assert mine is None if k in (1, 2) or right is None else torch.equal(mine, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, columns", [(1, 8), (31, 72), (257, 64), (600, 136)])
def test_columns_are_summed(rows, columns, dtype):
    """Small integers: exact in every order."""
    matrix = torch.randint(-2, 3, (rows, columns)).to(dtype)
    sums = torch.full((columns,), torch.nan).to(dtype)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (matrix, sums))
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(columns))
    library("rnn_threads.cpp").column_sums(DTYPES.index(dtype), *sizes, *pointers)
    assert torch.equal(sums, matrix.double().sum(0).to(dtype))


@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
@pytest.mark.parametrize("sizes", [[1], [4, 4], [5, 3, 3, 1], [3, 1, 0], [2, 0, 0], [128, 7]])
def test_steps_follow_from_lengths(sizes, reverse):
    """There and back, from any of them on, as the host finds them in the offsets."""
    layer = Layer("gru", sizes, 1, 1, 1, reverse, torch.float32)
    assert library("rnn_threads.cpp").wrong_steps(int64s(*layer.shape), int64s(*layer.offsets)) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("sizes", LAUNCHES, ids=str)
@pytest.mark.parametrize("h, blocks", [(1, 1), (7, 2), (33, 40), (70, 12), (72, 5)])
def test_one_launch_for_all_steps_is_the_loop(kind, sizes, h, blocks, reverse, dtype):
    """Every unit belongs to one block."""
    layer = Layer(kind, sizes, 5, h, h, reverse, dtype)
    assert_launches_are_the_loop(layer, Launch(blocks), Launch(blocks))


# As many tilings as there and back together, and hidden features: a strip of 32 and part of it, a
# strip for every warp and more, registers that do not hold them all.
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("there, back", [(0, 0), (1, 1), (2, 2), (0, 3)])
@pytest.mark.parametrize("sizes, h", [([8, 8, 8], 40), ([19, 17, 8, 3], 24), ([3, 3], 1056)])
def test_tensor_cores_for_all_steps_are_the_loop(kind, sizes, h, there, back, reverse, dtype):
    layer = Layer(kind, sizes, 5, h, h, reverse, dtype)
    assert_launches_are_the_loop(layer, Launch(1000, there), Launch(1000, back))


@pytest.mark.parametrize(
    ("dtype", "kind", "batch", "i", "h", "taken"),
    [
        (torch.bfloat16, "lstm", 1, 8, 8, 3),
        (torch.bfloat16, "gru", 1, 9, 8, 0),
        (torch.float64, "lstm", 4096, 512, 512, 0),
        # 64 tiles of 128x128 of the forward's product, and of the weights' gradient.
        (torch.float32, "lstm", 128, 8, 1024, 1),
        (torch.float32, "lstm", 127, 8, 1024, 0),
        (torch.float32, "lstm", 512, 512, 512, 3),
        (torch.float32, "lstm", 512, 504, 512, 1),
        (torch.float32, "gru", 512, 512, 512, 1),
        (torch.float32, "gru", 1024, 512, 688, 3),
    ],
    ids=str,
)
def test_what_tensor_cores_take(dtype, kind, batch, i, h, taken):
    layer = Layer(kind, [batch] * 2, i, h, h, False, dtype)
    found = library("rnn_threads.cpp").takes_tensorop(int64s(*layer.shape), int64s(*layer.offsets))
    assert found == taken


def tilings(h, batch, backward, gpu):
    """Blocks, bytes of shared memory and whether it fits, for each tiling of a bfloat16 LSTM."""
    layer = Layer("lstm", [batch] * 2, 1, h, h, False, torch.bfloat16)
    out = int64s(*[0] * 12)
    count = library("rnn_threads.cpp").tilings(
        int64s(*layer.shape), int64s(*layer.offsets), gpu.gpu(), int(backward), out
    )
    return [tuple(out[3 * k : 3 * k + 3]) for k in range(count)]


def test_what_tilings_take_of_an_h100():
    """Every block must be on the GPU at once, or they wait for each other for good."""
    h100 = Launch(132)
    assert tilings(768, 16, False, h100)[0] == (96, 17408, 1)
    assert tilings(768, 16, True, h100)[0] == (96, 5120, 1)
    assert tilings(768, 16, True, h100)[2] == (96, 17408, 1)
    assert tilings(1024, 16, False, h100)[0] == (128, 17408 + 32768, 1)
    assert [fits for *_, fits in tilings(768, 64, False, h100)] == [0, 0, 1]
    assert [fits for *_, fits in tilings(2048, 16, False, h100)] == [0, 1, 0]
    assert [fits for *_, fits in tilings(2560, 16, False, h100)] == [0, 0, 0]
    assert [fits for *_, fits in tilings(768, 16, False, Launch(95))] == [0, 1, 1]
    assert tilings(1024, 16, False, Launch(132, shared=50175))[0] == (128, 50176, 0)


def test_clusters_leave_processors_without_neighbours():
    """96 blocks in clusters of four, where ten processors hold two of them."""
    assert [tilings(768, 16, True, Launch(n))[2][2] for n in (119, 120)] == [0, 1]


@pytest.mark.parametrize("sizes, r", [([3], 6), ([129, 129], 6), ([3, 3], 4)])
def test_what_one_launch_does_not_take(sizes, r):
    """A single step, many sequences, a projection; weights that do not fit."""
    layer = Layer("lstm", sizes, 5, 6, r, False, torch.float32)
    assert all(t.isnan().all() for t in layer.forward(launch=Launch(2)))
    fits = Layer("lstm", [3, 3], 5, 6, 6, False, torch.float32)
    bytes_of_three_units = 3 * 4 * 6 * 4
    assert all(
        t.isnan().all() for t in fits.forward(launch=Launch(2, shared=bytes_of_three_units - 1))
    )
    assert not fits.forward(launch=Launch(2, shared=bytes_of_three_units))[0].isnan().any()
