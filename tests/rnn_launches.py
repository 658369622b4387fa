"""Recurrent layers whose CUDA kernels the CPU runs, thread by thread, and what they equal."""

import ctypes
from itertools import accumulate

import torch
import torch.nn.functional as F

from host import int64s, library
from recurrent import GATES
from suite import DTYPES

KEPT = {"lstm": 5, "gru": 4}
# Sequences at each step: a group of four less or more, some that end early, at once and before all.
LAUNCHES = [[3] * 4, [9, 9], [6, 5, 5, 1], [5, 2, 0]]


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
    """Of many steps on a GPU of so many processors: on ordinary units, or by a tiling."""

    def __init__(self, processors, tiling=-1, shared=232448):
        self.processors, self.tiling, self.shared = processors, tiling, shared

    def gpu(self):
        return int64s(self.processors, self.shared)

    def run(self, function, layers, stacked, tensors, *flags):
        """`forward` or `backward` of layers side by side, whose tensors are in `tensors`."""
        shapes = [size for layer in layers for size in layer.shape]
        flags = (self.gpu(), self.tiling, len(layers), int(stacked), *flags)
        call(f"{function}_resident", shapes, layers[0].offsets, tensors, *flags)


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
        if launch is None:
            call("forward", self.shape, self.offsets, self.forward_tensors(save), int(save))
        else:
            launch.run("forward", [self], False, self.forward_tensors(save), int(save))
        return self.outputs

    def forward_tensors(self, save):
        *_, b, _, h, _ = self.shape
        width = (KEPT if save else GATES)[self.kind] * h
        self.reserve = self.accumulated(sum(self.sizes), width)
        outputs = (*self.outputs, None)[:3]
        self.work = (self.accumulated(b, h), self.accumulated(b, h))
        return (*self.inputs, *outputs, self.reserve, *self.work)

    def backward(self, grads, wanted, launch=None):
        tensors = self.backward_tensors(grads, wanted)
        if launch is None:
            call("backward", self.shape, self.offsets, tensors)
        else:
            launch.run("backward", [self], False, tensors)
        return self.gradients

    def backward_tensors(self, grads, wanted):
        *_, b, _, h, r = self.shape
        n, rows = sum(self.sizes), GATES[self.kind] * h
        x, h0, c0, w_ih, w_hh, _, _, w_hr = self.inputs
        self.gradients = [
            self.unwritten(*t.shape) if want and t is not None else None
            for t, want in zip(self.inputs, wanted, strict=True)
        ]
        from_x = self.unwritten(n, rows)
        from_h = from_x if self.kind == "lstm" else self.unwritten(n, rows)
        work = (from_x, from_h, self.unwritten(n, r), self.unwritten(n, r), self.accumulated(b, h))
        given = (x, h0, c0, w_ih, w_hh, w_hr, self.outputs[0], self.reserve, *(*grads, None)[:3])
        return (*given, *self.gradients, *work)

    def expected(self, grads):
        wide = [None if t is None else t.double().requires_grad_() for t in self.inputs]
        outputs = reference(self.kind, self.sizes, self.reverse, *wide)[: len(self.outputs)]
        total = sum((y * g).sum() for y, g in zip(outputs, grads, strict=True) if g is not None)
        sources = [t for t in wide if t is not None]
        gradients = iter(torch.autograd.grad(total, sources, materialize_grads=True))
        return outputs, [None if t is None else next(gradients) for t in wide]
