"""What the threads of the CUDA kernels of recurrent layers compute, run by the CPU."""

import ctypes
from itertools import accumulate, pairwise, product

import pytest
import torch
import torch.nn.functional as F

from host import int64s, library
from suite import DTYPES, HALF

GATES, KEPT = {"lstm": 4, "gru": 3}, {"lstm": 5, "gru": 4}
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


def reference(kind, sizes, reverse, x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr):
    """The layer as a loop over its steps: y, h and c after the last."""
    begins = [0, *accumulate(sizes)]
    rows = [None] * len(sizes)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        n = sizes[t]
        from_x = F.linear(x[begins[t] : begins[t + 1]], w_ih, b_ih).chunk(GATES[kind], -1)
        from_h = F.linear(h[:n], w_hh, b_hh).chunk(GATES[kind], -1)
        if kind == "lstm":
            i, f, g, o = (a + b for a, b in zip(from_x, from_h, strict=True))
            c = torch.cat([f.sigmoid() * c[:n] + i.sigmoid() * g.tanh(), c[n:]])
            y = o.sigmoid() * c[:n].tanh()
            y = y if w_hr is None else F.linear(y, w_hr)
        else:
            r, z = ((from_x[k] + from_h[k]).sigmoid() for k in range(2))
            new = (from_x[2] + r * from_h[2]).tanh()
            y = new + z * (h[:n] - new)
        rows[t] = y
        h = torch.cat([y, h[n:]])
    return torch.cat(rows) if rows else x.new_zeros(0, h.shape[1]), h, c


def call(function, shape, offsets, tensors, *flags):
    """A function of rnn_threads.cpp, whose results are in `tensors`."""
    pointers = (ctypes.c_void_p * len(tensors))(
        *(None if t is None else t.data_ptr() for t in tensors)
    )
    run = getattr(library("rnn_threads.cpp"), function)
    run(int64s(*shape), int64s(*offsets), *flags, pointers)


class Launch:
    """One for all steps on a GPU of so many processors: on ordinary units, or by a tiling."""

    def __init__(self, processors, tiling=None, shared=232448):
        self.processors, self.shared = processors, shared
        self.way, self.tiling = ("resident", ()) if tiling is None else ("tensorop", (tiling,))

    def gpu(self):
        return int64s(self.processors, self.shared)


class Layer:
    """A layer's inputs, drawn, and its results, still to be written."""

    def __init__(self, kind, sizes, i, h, r, reverse, dtype, bias=True):
        torch.manual_seed(len(sizes) + h)
        b, n, rows = sizes[0] if sizes else 3, sum(sizes), GATES[kind] * h
        self.kind, self.sizes, self.reverse, self.dtype = kind, sizes, reverse, dtype
        self.shape = (DTYPES.index(dtype), kind == "gru", reverse, len(sizes), b, i, h, r)
        self.offsets = [0, *accumulate(sizes)]
        shapes = [(n, i), (b, r), (b, h), (rows, i), (rows, r), (rows,), (rows,), (r, h)]
        self.inputs = [torch.randn(s).mul(s[-1] ** -0.5 if s[-1] else 1).to(dtype) for s in shapes]
        for absent, there in ((2, kind == "lstm"), (5, bias), (6, bias), (7, r != h)):
            self.inputs[absent] = self.inputs[absent] if there else None
        self.outputs = [
            self.unwritten(*s) for s in ((n, r), (b, r), *([(b, h)] * (kind == "lstm")))
        ]

    def unwritten(self, *shape, dtype=None):
        return torch.full(shape, torch.nan, dtype=dtype or self.dtype)

    def accumulated(self, *shape):
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self.unwritten(*shape, dtype=wide)

    def forward(self, save=True, launch=None):
        """By a launch for each step, or by one for all."""
        tensors = self.forward_tensors(save)
        if launch is None:
            call("forward", self.shape, self.offsets, tensors, int(save))
        else:
            function = f"forward_{launch.way}"
            call(
                function, self.shape, self.offsets, tensors, launch.gpu(), int(save), *launch.tiling
            )
        return self.outputs

    def forward_tensors(self, save):
        *_, b, _, h, _ = self.shape
        width = (KEPT if save else GATES)[self.kind] * h
        self.reserve = self.accumulated(sum(self.sizes), width)
        outputs = (*self.outputs, None)[:3]
        self.work = (self.accumulated(b, h), self.accumulated(b, h))
        return (*self.inputs, *outputs, self.reserve, *self.work)

    def backward(self, grads, wanted, launch=None):
        *_, b, _, h, r = self.shape
        n, rows = sum(self.sizes), GATES[self.kind] * h
        x, h0, c0, w_ih, w_hh, _, _, w_hr = self.inputs
        gradients = [
            self.unwritten(*t.shape) if want and t is not None else None
            for t, want in zip(self.inputs, wanted, strict=True)
        ]
        from_x = self.unwritten(n, rows)
        from_h = from_x if self.kind == "lstm" else self.unwritten(n, rows)
        work = (from_x, from_h, self.unwritten(n, r), self.unwritten(n, r), self.accumulated(b, h))
        given = (x, h0, c0, w_ih, w_hh, w_hr, self.outputs[0], self.reserve, *(*grads, None)[:3])
        tensors = (*given, *gradients, *work)
        if launch is None:
            call("backward", self.shape, self.offsets, tensors)
        else:
            flags = (launch.gpu(), *launch.tiling)
            call(f"backward_{launch.way}", self.shape, self.offsets, tensors, *flags)
        return gradients

    def expected(self, grads):
        wide = [None if t is None else t.double().requires_grad_() for t in self.inputs]
        outputs = reference(self.kind, self.sizes, self.reverse, *wide)[: len(self.outputs)]
        total = sum((y * g).sum() for y, g in zip(outputs, grads, strict=True) if g is not None)
        sources = [t for t in wide if t is not None]
        gradients = iter(torch.autograd.grad(total, sources, materialize_grads=True))
        return outputs, [None if t is None else next(gradients) for t in wide]


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
    """There and back, as the host finds them in the offsets."""
    layer = Layer("gru", sizes, 1, 1, 1, reverse, torch.float32)
    assert library("rnn_threads.cpp").wrong_steps(int64s(*layer.shape), int64s(*layer.offsets)) == 0


# Sequences at each step: a group of four less or more, some that end early, at once and before all.
LAUNCHES = [[3] * 4, [9, 9], [6, 5, 5, 1], [5, 2, 0]]


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


def stack_of(layers, kind, sizes, h, reverse=False, dtype=torch.float32):
    """Layers of one shape, each of which reads the output of the one before."""
    stack = [Layer(kind, sizes, h, h, h, reverse, dtype) for _ in range(layers)]
    for below, layer in pairwise(stack):
        layer.inputs[0] = below.outputs[0]
        layer.inputs[4] = torch.randn_like(layer.inputs[4]) * h**-0.5
    return stack


def run_wavefront(stack, gpu, save=True):
    tensors = [t for layer in stack for t in layer.forward_tensors(save)]
    flags = (gpu.gpu(), int(save), len(stack))
    call("forward_wavefront", stack[0].shape, stack[0].offsets, tensors, *flags)
    return [(*layer.outputs, layer.reserve) for layer in stack]


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("steps", [128, 191])
@pytest.mark.parametrize("h", [4, 5])
def test_a_wavefront_is_layer_after_layer(kind, h, steps, dtype, save):
    """To the last bit, and all that is kept for the backward."""
    stack = stack_of(3, kind, [3] * steps, h, dtype=dtype)
    right = [
        [t.clone() for t in (*layer.forward(save, Launch(2)), layer.reserve)] for layer in stack
    ]
    for layer in stack:
        for t in layer.outputs:
            t.fill_(torch.nan)
    for mine, other in zip(run_wavefront(stack, Launch(6), save), right, strict=True):
        for a, b in zip(mine, other if save else other[:-1], strict=save):
            assert not b.isnan().any()
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "layers, sizes, reverse, processors",
    [
        (2, [3] * 127, False, 40),
        (2, [3] * 128, True, 40),
        (2, [3] * 127 + [2], False, 40),
        (1, [3] * 128, False, 40),
        (13, [3] * 128, False, 40),
        (3, [3] * 128, False, 2),
    ],
)
def test_what_no_wavefront_takes(layers, sizes, reverse, processors):
    """Too few steps or layers, too many, the other direction, packed, no processor for each."""
    stack = stack_of(layers, "lstm", sizes, 4, reverse)
    assert all(y.isnan().all() for y, *_ in run_wavefront(stack, Launch(processors)))


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
