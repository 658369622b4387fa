"""Cases of the recurrent operators, and what they equal by PyTorch's own operations."""

import torch

from judging import Case, Randn

GATES = {"lstm": 4, "gru": 3}


def weights(kind, i, h, *, layers=1, directions=1, bias=True, projected=0):
    """Names and shapes of what a network of this form is made of, in PyTorch's order."""
    rows, output = GATES[kind] * h, projected or h

    def randn(*shape):
        return Randn(*shape, scale=h**-0.5)

    made = {}
    for layer in range(layers):
        for end in ("", "_reverse")[:directions]:
            at = f"_l{layer}{end}"
            made[f"w_ih{at}"] = randn(rows, directions * output if layer else i)
            made[f"w_hh{at}"] = randn(rows, output)
            if bias:
                made |= {f"b_ih{at}": randn(rows), f"b_hh{at}": randn(rows)}
            if projected:
                made[f"w_hr{at}"] = randn(projected, h)
    return made


def states(kind, h, *size, projected=0):
    hidden = {"h": Randn(*size, projected or h)}
    return hidden | {"c": Randn(*size, h)} if kind == "lstm" else hidden


def batch_sizes(lengths):
    return torch.tensor([sum(n > t for n in lengths) for t in range(max(lengths))])


def without_cudnn():
    """Native by PyTorch's own cells on a GPU.

    cuDNN's networks refuse states that are not contiguous and gradients in evaluation mode.
    """
    return torch.backends.cudnn.flags(enabled=False)


class NetworkCase(Case):
    def draw(self, *args, **options):
        """batch_sizes stay on the CPU, as those of a PackedSequence."""
        return super().draw(*args, **options) | {"sizes": self.arguments["sizes"]}


def case(kind, name, t, b, i, h, *, lengths=(), batch_first=False, **form):
    """A network on b sequences of t steps, or on packed ones of the given lengths."""
    layers, directions = form.get("layers", 1), form.get("directions", 1)
    padded = Randn(b, t, i) if batch_first else Randn(t, b, i)
    return NetworkCase(
        name,
        terms=(i + h) * t * layers * GATES[kind] * h,  # a sum over gates of what sums over steps
        input=Randn(sum(lengths), i) if lengths else padded,
        **states(kind, h, layers * directions, b, projected=form.get("projected", 0)),
        **weights(kind, i, h, **form),
        order=(*states(kind, 1), *weights(kind, i, h, **form)),
        sizes=batch_sizes(lengths) if lengths else None,
        form=(form.get("bias", True), layers, 0.0, True, directions == 2),
        batch_first=batch_first,
    )


def network(function, kind):
    """`function`, lstm or gru, taking a case's arguments by name."""

    def call(input, order, sizes, form, batch_first, **named):
        given = [named[name] for name in order]
        hx = [given.pop(0) for _ in states(kind, 1)]
        hx = hx if kind == "lstm" else hx[0]
        if sizes is None:
            return function(input, hx, given, *form, batch_first)
        return function(input, sizes, hx, given, *form)

    return call


def in_half(function, half):
    """`function` as autocast to `half` means it, where oneDNN has no LSTM of that dtype."""

    def call(**arguments):
        with torch.autocast("cpu", enabled=False):
            halves = {
                name: a.to(half) if getattr(a, "dtype", None) == torch.float32 else a
                for name, a in arguments.items()
            }
            return function(**halves)

    return call


def step(kind):
    """The cell by PyTorch's own operations, for what its LSTM and GRU refuse."""
    linear = torch.nn.functional.linear

    def lstm_step(input, h, c, w_ih, w_hh, b_ih=None, b_hh=None):
        i, f, g, o = (linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru_step(input, h, w_ih, w_hh, b_ih=None, b_hh=None):
        x, m = linear(input, w_ih, b_ih).chunk(3, -1), linear(h, w_hh, b_hh).chunk(3, -1)
        z, n = (x[1] + m[1]).sigmoid(), (x[2] + (x[0] + m[0]).sigmoid() * m[2]).tanh()
        return ((1 - z) * n + z * h,)

    return lstm_step if kind == "lstm" else gru_step


def loop(kind):
    """A network of one layer on padded sequences, step by step."""

    def call(input, order, sizes, form, batch_first, **named):
        given = [named[name] for name in order]
        state = tuple(given.pop(0)[0] for _ in states(kind, 1))
        outputs = []
        for x in input:
            state = step(kind)(x, *state, *given)
            outputs.append(state[0])
        return torch.stack(outputs), *(s.unsqueeze(0) for s in state)

    return call
