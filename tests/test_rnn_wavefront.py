"""Layers side by side in the launches of a GPU: their fronts, and what they leave, on the CPU."""

from itertools import accumulate, pairwise

import pytest
import torch

from host import int64s, library
from recurrent import GATES
from rnn_launches import LAUNCHES, Launch, Layer
from suite import DTYPES, HALF


def fronts(sizes, layers, stacked, reverse, back):
    """The pieces of a stack: number of the front, layer, begin, end, first row and rows of each."""
    layer = Layer("gru", sizes, 1, 1, 1, reverse, torch.float32)
    out = int64s(*[0] * (6 * layers * (1 + len(sizes) // 32)))
    count = library("rnn_threads.cpp").fronts(
        int64s(*layer.shape), int64s(*layer.offsets), layers, int(stacked), int(back), out
    )
    return [tuple(out[6 * k : 6 * k + 6]) for k in range(count)]


@pytest.mark.parametrize("reverse", [False, True], ids=["first to last", "last to first"])
@pytest.mark.parametrize("layers", range(1, 13))
@pytest.mark.parametrize("steps", [128, 159, 160, 191, 500])
def test_a_front_waits_for_fronts_before_it_alone(layers, steps, reverse):
    """Each step of each layer once, behind those it reads: of its layer, and of its neighbour."""
    sizes = [5] * (steps // 2) + [3] * (steps - steps // 2)
    begins = [0, *accumulate(sizes)]
    for back in (False, True):
        done = {}
        for front, layer, begin, end, first, rows in fronts(sizes, layers, True, reverse, back):
            assert begin < end and (end == steps or end - begin == 32)
            earliest = steps - end if reverse else begin
            assert (first, first + rows) == (begins[earliest], begins[earliest + end - begin])
            for s in range(begin, end):
                assert (layer, s) not in done
                done[layer, s] = front
        assert len(done) == layers * steps
        order = -1 if back else 1
        for (layer, s), front in done.items():
            assert done.get((layer - order, s), -1) < front
            assert done.get((layer, s - order), -1) <= front
        assert max(done.values()) + 1 == layers + steps // 32 - 1


def test_directions_are_one_front():
    assert fronts([3, 3, 2], 2, False, False, False) == [(0, 0, 0, 3, 0, 8), (0, 1, 0, 3, 0, 8)]


def stack_of(layers, kind, sizes, h, reverse=False, dtype=torch.float32):
    """Layers of one shape, each of which reads the output of the one before."""
    stack = [Layer(kind, sizes, h, h, h, reverse, dtype) for _ in range(layers)]
    for below, layer in pairwise(stack):
        layer.inputs[0] = below.outputs[0]
        layer.inputs[4] = torch.randn(layer.inputs[4].shape).mul(h**-0.5).to(dtype)
    return stack


def directions_of(kind, sizes, h, dtype):
    """Both of a layer, of one input."""
    pair = [Layer(kind, sizes, h, h, h, reverse, dtype) for reverse in (False, True)]
    pair[1].inputs[0] = pair[0].inputs[0]
    pair[1].inputs[4] = torch.randn(pair[1].inputs[4].shape).mul(h**-0.5).to(dtype)
    return pair


def run_forward(layers, stacked, launch, save=True):
    """Copies of all results; that of nothing kept is of no use."""
    tensors = [t for layer in layers for t in layer.forward_tensors(save)]
    launch.run("forward", layers, stacked, tensors, int(save))
    return [[t.clone() for t in (*x.outputs, *([x.reserve] * save))] for x in layers]


def run_backward(layers, stacked, grads, wanted, launch):
    """Gradients of all layers, from those of the states and of what nobody else reads."""
    tensors, grad_y = [], None
    for layer, given in zip(reversed(layers), reversed(grads), strict=True):
        given = [grad_y if stacked and grad_y is not None else given[0], *given[1:]]
        tensors = [*layer.backward_tensors(given, wanted), *tensors]
        grad_y = layer.gradients[0]
    launch.run("backward", layers, stacked, tensors)
    return [layer.gradients for layer in layers]


def assert_same_bits(mine, right):
    for a, b in zip(mine, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None) == (y is None)
            assert x is None or (not y.isnan().any() and torch.equal(x, y))


def assert_side_by_side_is_one_after_the_other(layers, stacked, there, back, save=True):
    """To the last bit, and all that is kept for the backward."""
    processors = Launch(there.processors // len(layers), there.tiling)
    right = [run_forward([layer], False, processors, save)[0] for layer in layers]
    for layer in layers:
        for t in layer.outputs:
            t.fill_(torch.nan)
    assert_same_bits(run_forward(layers, stacked, there, save), right)
    if not save:
        return
    grads = [[torch.randn(t.shape).to(t.dtype) for t in x.outputs] for x in layers]
    for wanted in ([True] * 8, [k not in (1, 2) for k in range(8)]):
        mine = run_backward(layers, stacked, grads, wanted, back)
        processors, grad_y = Launch(back.processors // len(layers), back.tiling), None
        right = []
        for layer, given in zip(reversed(layers), reversed(grads), strict=True):
            given = [grad_y if stacked and grad_y is not None else given[0], *given[1:]]
            right.insert(0, layer.backward(given, wanted, processors))
            grad_y = right[0][0]
        assert_same_bits(mine, right)


PACKED = [5] * 40 + [3] * 60 + [1] * 60


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("sizes", [[3] * 128, [3] * 191, PACKED], ids=len)
@pytest.mark.parametrize("h", [4, 5])
def test_a_wavefront_is_layer_after_layer(kind, h, sizes, dtype, save):
    stack = stack_of(3, kind, sizes, h, dtype=dtype)
    assert_side_by_side_is_one_after_the_other(stack, True, Launch(6), Launch(6), save)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("there, back", [(0, 0), (2, 1), (1, 2), (1, 3)])
def test_a_wavefront_on_tensor_cores_is_layer_after_layer(kind, there, back):
    stack = stack_of(2, kind, PACKED, 24, dtype=torch.bfloat16)
    launches = Launch(200, there), Launch(200, back)
    assert_side_by_side_is_one_after_the_other(stack, True, *launches)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("sizes", LAUNCHES, ids=str)
def test_directions_side_by_side_are_one_after_the_other(kind, sizes, dtype):
    pair = directions_of(kind, sizes, 24, dtype)
    assert_side_by_side_is_one_after_the_other(pair, False, Launch(16), Launch(16))
    if dtype in HALF:
        launches = Launch(200, 0), Launch(200, 2)
        assert_side_by_side_is_one_after_the_other(pair, False, *launches)


@pytest.mark.parametrize(
    "layers, sizes, processors",
    [(2, [3] * 127, 40), (13, [3] * 128, 40), (3, [3] * 128, 2)],
)
def test_what_no_wavefront_takes(layers, sizes, processors):
    """Too few steps, too many layers, no processor for each."""
    stack = stack_of(layers, "lstm", sizes, 4)
    assert all(y.isnan().all() for y, *_ in run_forward(stack, True, Launch(processors)))
