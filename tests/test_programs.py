"""Random programs of all operators on one another's results equal the same programs of PyTorch's.

Elsewhere an operator has leaves of its own. Here a weight, a state or a mask is what another made,
a view of it or of what is written to, is used twice, or is an input of the same call.
"""

import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pyops
from judging import flat
from recurrent import GATES, batch_sizes

NATIVE = SimpleNamespace(
    **{n: getattr(torch, n) for n in ("lstm", "gru", "lstm_cell", "gru_cell")},
    **{n: getattr(F, n) for n in ("conv2d", "linear", "max_pool2d")},
    conv2d_relu=lambda *a: F.relu(F.conv2d(*a)),
    conv2d_relu_max_pool2d=lambda *a: F.max_pool2d(F.relu(F.conv2d(*a)), 2),
    linear_relu=lambda *a: F.relu(F.linear(*a)),
    scaled_dot_product_attention=F.scaled_dot_product_attention,
)
NOISE = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Program:
    """What it does depends on the seed and on shapes alone; `lines` tell it."""

    def __init__(self, seed, ops):
        self.random, self.ops, self.lines = random.Random(seed), ops, []
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.leaves = [draw(2, 3, 4), draw(3, 2, 2), draw(12), draw(4, 6, 5)]
        for leaf in self.leaves:
            leaf.requires_grad_(self.random.random() < 0.8)
        self.tensors = [leaf * 0.8 for leaf in self.leaves]
        kinds = [self.convolve, self.pool, self.multiply, self.attend, self.step, self.run]
        for _ in range(self.random.randint(2, 5)):
            self.random.choice(kinds)()

    def size(self, most=3):
        return self.random.randint(1, most)

    def some(self, *shape):
        """A tensor of this shape, of an earlier one's elements: a late one rather than an early."""
        count = torch.Size(shape).numel()
        index = max(self.random.randrange(len(self.tensors)) for _ in range(2))
        t = self.tensors[index]
        ways = [
            ("[…]", lambda: t.reshape(-1)[:count].view(shape)),
            ("[::-1]", lambda: t.reshape(-1).flip(0)[:count].view(shape)),
            ("[::2]", lambda: t.reshape(-1)[: 2 * count : 2].view(shape)),
            ("expanded", lambda: t.reshape(-1)[:1].view([1] * len(shape)).expand(shape)),
            ("repeated", lambda: t.reshape(-1).repeat(count // t.numel() + 1)[:count].view(shape)),
        ]
        enough = min(t.numel() // count, 2)  # for the first two, for the first three
        name, made = self.random.choice((ways[3:], ways[:2], ways[:3])[enough])
        self.lines.append(f"    {shape}: #{index}{name}")
        return t if t.shape == shape else made()

    def maybe(self, *shape):
        return self.some(*shape) if self.random.random() < 0.7 else None

    def image(self, *shape):
        """Without equal elements, of which a maximum might be another by rounding."""
        return self.some(*shape) + NOISE[: torch.Size(shape).numel()].view(shape)

    def call(self, name, *arguments):
        self.lines.append(f"{name} {[a for a in arguments if isinstance(a, int)]}")
        outputs = flat(getattr(self.ops, name)(*arguments))
        for y in outputs:
            fate = self.random.random()
            written = fate < 0.2 and not name.endswith("relu")  # which keeps its result
            detached = 0.2 < fate < 0.3 and name not in ("linear", "conv2d")  # whose may be views
            then = y.mul_(0.5) if written else y.detach_() if detached else y
            told = ", halved" if written else ", detached" if detached else ""
            self.lines.append(f"    -> #{len(self.tensors)} {tuple(y.shape)}{told}")
            self.tensors.append(then)
        return outputs

    def convolve(self):
        o, c, k, batch = self.size(), self.size(2), self.size(2), self.random.choice([(), (2,)])
        name = self.random.choice(["conv2d", "conv2d_relu", "conv2d_relu_max_pool2d"])
        self.call(name, self.image(*batch, c, 5, 6), self.some(o, c, k, k), self.maybe(o))

    def pool(self):
        self.call("max_pool2d", self.image(2, 5, 6), self.size(), self.size())

    def multiply(self):
        o, i, lead = self.size(), self.size(), self.random.choice([(), (3,), (2, 3)])
        name = self.random.choice(["linear", "linear_relu"])
        self.call(name, self.some(*lead, i), self.some(o, i), self.maybe(o))

    def attend(self):
        lead, s = self.random.choice([(), (2,), (2, 2)]), self.size()
        query, key, mask = self.some(*lead, 3, 2), self.some(*lead, s, 2), self.maybe(3, s)
        value = key if self.random.random() < 0.3 else self.some(*lead, s, 2)
        self.call("scaled_dot_product_attention", query, key, value, mask)

    def weights(self, kind, i, h):
        rows = GATES[kind] * h
        return [self.some(rows, i), self.some(rows, h), self.some(rows), self.some(rows)]

    def step(self):
        kind, b, i, h = self.random.choice(list(GATES)), self.size(), self.size(), self.size()
        state = (self.some(b, h), self.some(b, h)) if kind == "lstm" else self.some(b, h)
        self.call(f"{kind}_cell", self.some(b, i), state, *self.weights(kind, i, h))

    def run(self):
        """A network twice: the second call goes on from the states of the first."""
        kind, i, h, both = self.random.choice(list(GATES)), self.size(), self.size(), self.size(2)
        weights = [w for _ in range(both) for w in self.weights(kind, i, h)]
        states = [self.some(both, 2, h) for _ in range(2 if kind == "lstm" else 1)]
        packed = self.random.random() < 0.3
        x = self.some(4, i) if packed else self.some(2, 2, i)
        form = (True, 1, 0.0, True, both == 2)
        for _ in range(2):
            hx = states if kind == "lstm" else states[0]
            if packed:
                _, *states = self.call(kind, x, batch_sizes([2, 2]), hx, weights, *form)
            else:
                _, *states = self.call(kind, x, hx, weights, *form, False)

    def results(self):
        """All values; gradients alone and as a graph; their gradients."""
        found = [t.detach() for t in self.tensors]
        leaves = [leaf for leaf in self.leaves if leaf.requires_grad]
        loss = sum((t / 2).tanh().square().sum() for t in self.tensors)
        if not loss.requires_grad or not leaves:
            return found
        for graph in (False, True):
            grads = torch.autograd.grad(
                loss, leaves, retain_graph=True, create_graph=graph, materialize_grads=True
            )
            found += [g.detach() for g in grads]
        again = sum((g / 4).tanh().sum() for g in grads) + 0 * loss
        return found + list(torch.autograd.grad(again, leaves, materialize_grads=True))


@pytest.mark.parametrize("seed", range(100))
def test_program(seed):
    with sdpa_kernel(SDPBackend.MATH):  # native's other kernels have no second derivative
        ours, native = Program(seed, pyops.functional), Program(seed, NATIVE)
        print("\n".join(ours.lines))
        torch.testing.assert_close(ours.results(), native.results(), rtol=1e-7, atol=1e-9)
