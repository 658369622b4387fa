"""lstm, gru, lstm_cell and gru_cell."""

import pytest
import torch

import pyops
from judging import judge
from pyops.functional import gru, gru_cell, lstm, lstm_cell
from recurrent import (
    GATES,
    batch_sizes,
    case,
    in_half,
    loop,
    network,
    states,
    step,
    weights,
    without_cudnn,
)
from suite import Case, OpSuite, Randn, Reject, flat, results, tensors_of


class RecurrentSuite(OpSuite):
    @pytest.fixture(autouse=True)
    def native_cells(self, request):
        other_dtypes = request.node.originalname == "test_other_dtypes_do_what_native_does"
        if other_dtypes and request.node.callspec.params["device"] == "cuda":
            pytest.skip("native has no cells of them there; ours go on as on the CPU")
        with without_cudnn():
            yield

    @pytest.fixture(autouse=True)
    def reference_under_transforms(self, request):
        if request.node.originalname in ("test_functorch", "test_forward_mode"):
            self.reference = self.transformable


def network_cases(kind):
    def make(*args, **options):
        return case(kind, *args, **options)

    return [
        make("tiny", 2, 2, 2, 2),
        make("odd", 11, 5, 13, 35),
        make("one sequence", 17, 1, 33, 67),
        make("one step", 1, 9, 12, 20),
        make("tiles of rows", 3, 37, 65, 96),
        make("no bias", 5, 17, 9, 33, bias=False),
        make(
            "stacked, both ways, batch first", 7, 3, 9, 17, layers=2, directions=2, batch_first=True
        ),
        make("tiny packed", 2, 2, 2, 2, lengths=(2, 1)),
        make("packed", 9, 18, 11, 19, lengths=(9, 9, 8, *range(7, 0, -1), *[1] * 8)),
        make("packed, both ways", 6, 4, 11, 19, lengths=(6, 5, 5, 2), layers=2, directions=2),
        make("no sequences", 3, 0, 4, 5),
    ]


def network_rejects(kind):
    """What native refuses too; see test_rejects_what_native_does_not_check."""
    op = f"{kind}: "
    return [
        Reject(op + "expected a sequence length larger than 0", input=Randn(0, 2, 2)),
        Reject(op + "input must", input=Randn(2, 2)),
        Reject(op + "params must be 4 for each of 1 layers", order=(*states(kind, 1), "w_ih_l0")),
        Reject(op + ".* must have the input's dtype", input=Randn(2, 2, 2, dtype=torch.float64)),
        Reject(op + "hx", h=Randn(2, 2)),
    ]


class NetworkSuite(RecurrentSuite):
    @pytest.mark.parametrize("scale", [1e-20, 1e20], ids=str)
    def test_magnitudes(self, scale, place):
        """Weights and gradients beyond what AMX tiles represent."""
        wide = case(self.kind, "magnitudes", 3, 33, 40, 96)
        arguments = wide.draw(torch.float32, place)
        with torch.no_grad():
            arguments["input"] *= 1 / scale
            arguments["w_ih_l0"] *= scale
            arguments["w_hh_l0"] *= min(scale, 1)
        self.judge(arguments, wide)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"h": Randn(1, 3, 2)},
            {"h": Randn(2, 2, 2)},
            {"input": Randn(2, 2, 3)},
            {"w_ih_l0": Randn(4, 2)},
            {"w_hh_l0": Randn(4, 2)},
            {"b_hh_l0": Randn(5)},
            {"w_hh_l0": Randn(4, 4, dtype=torch.float64)},
            {"input": Randn(3, 2), "sizes": torch.tensor([2, 2])},
            {"input": Randn(3, 2), "sizes": torch.tensor([1, 2])},
            {"input": Randn(3, 2), "sizes": torch.tensor([3])},
            {"input": Randn(3, 2), "sizes": torch.tensor([2, 1], dtype=torch.int32)},
        ],
        ids=" ".join,
    )
    @pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
    def test_rejects_what_native_does_not_check(self, wrong, grad, device):
        """Native's fused LSTM reads beyond the ends of such tensors."""
        base = self.cases[0]
        arguments = Case(base.name, **base.arguments | wrong).draw(torch.float32, device, grad=grad)
        with pytest.raises(RuntimeError, match=f"{self.kind}: "):
            self.op(**arguments)

    def test_the_output_may_be_written_to(self, case):
        """As native's, but for that of its fused LSTM, which is of float32 alone."""
        gradients = []
        for function in (self.op, self.reference):
            arguments = case.draw(torch.float64)
            y = flat(function(**arguments))[0]
            y *= y.detach() + 1
            gradients.append(torch.autograd.grad(y.sum(), [*tensors_of(arguments).values()]))
        torch.testing.assert_close(*gradients)

    def test_rejects_an_empty_packed_sequence(self, device):
        base = self.cases[0].draw(torch.float32, device)
        nothing = torch.empty(0, 2, device=device)
        base |= {"input": nothing, "sizes": torch.empty(0, dtype=torch.int64)}
        with pytest.raises(ValueError):  # native crashes: it leaves this to pack_padded_sequence
            self.op(**base)

    @pytest.mark.parametrize("wanted", range(3), ids=["output", "hn", "cn"])
    def test_gradient_of_one_output(self, wanted, place):
        """The others have none, and whatever does not require a gradient gets none."""
        for requires in ("input", "w_hh_l0", "h"):
            got = []
            for function in (self.op, self.reference):
                arguments = self.cases[1].draw(torch.float64, place, grad=False)
                arguments[requires].requires_grad_()
                out = function(**arguments)[min(wanted, GATES[self.kind] - 2)]
                got.append(torch.autograd.grad(out.square().sum(), arguments[requires])[0])
            torch.testing.assert_close(*got, rtol=1e-9, atol=1e-12)

    def test_two_segments_are_the_whole(self, dtype, place):
        """By the rule, beside native in two: half types round the states in between."""

        def in_two(network):
            def run(**whole):
                y, *state = network(**whole | {"input": whole["input"][:4]})
                carried = dict(zip("hc", state, strict=False))
                z, *state = network(**whole | carried | {"input": whole["input"][4:]})
                return torch.cat([y, z]), *state

            return run

        segments = case(self.kind, "segments", 9, 5, 7, 12)
        whole = segments.draw(dtype, place, grad=False)
        judge(in_two(self.op), in_two(self.reference), whole, terms=segments.terms)

    def test_a_sequence_does_not_depend_on_the_others(self, place):
        whole = case(self.kind, "batch", 6, 33, 9, 20).draw(torch.float32, place, grad=False)
        y, *_ = self.op(**whole)
        for i in (0, 7, 32):
            one = {name: whole[name][:, i : i + 1] for name in ("input", *states(self.kind, 1))}
            torch.testing.assert_close(
                self.op(**whole | one)[0], y[:, i : i + 1], rtol=1e-5, atol=1e-6
            )

    def test_packed_is_padded(self, place):
        """The same values at every real step, and the state each sequence ended with."""
        lengths = (7, 6, 6, 3, 1)
        packed = case(self.kind, "packed", 7, 5, 4, 9, lengths=lengths).draw(torch.float64, place)
        data = torch.nn.utils.rnn.PackedSequence(packed["input"], packed["sizes"])
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(data)
        y, hn = self.op(**packed)[:2]
        whole, _ = self.op(**packed | {"input": padded, "sizes": None})[:2]
        real = torch.cat([whole[t, :rows] for t, rows in enumerate(packed["sizes"])])
        torch.testing.assert_close(y, real)
        last = torch.stack([whole[n - 1, i] for i, n in enumerate(lengths)])
        torch.testing.assert_close(hn[0], last)

    def test_both_ways_are_two_directions(self, place):
        both = case(self.kind, "both", 6, 4, 5, 8, directions=2).draw(torch.float64, place)
        y, hn = self.op(**both)[:2]
        for direction, end in enumerate(("_l0", "_l0_reverse")):
            one = {n: a for n, a in both.items() if n.endswith(end) or "_l0" not in n}
            one["order"] = tuple(n for n in both["order"] if n in one)
            for state in states(self.kind, 1):
                one[state] = both[state][direction : direction + 1]
            one["form"] = (True, 1, 0.0, True, False)
            turned = both["input"].flip(0) if direction else both["input"]
            z, zn = self.op(**one | {"input": turned})[:2]
            torch.testing.assert_close(
                y[..., 8 * direction :][..., :8], z.flip(0) if direction else z
            )
            torch.testing.assert_close(hn[direction], zn[0])

    def test_dropout_between_layers(self, device):
        """As native from the same seed, in training only."""
        stacked = case(self.kind, "dropout", 5, 3, 4, 6, layers=2).draw(torch.float64, device)
        stacked["sizes"], stacked["input"] = batch_sizes((5, 5, 5)), stacked["input"].flatten(0, 1)
        for train in (True, False):
            stacked["form"] = (True, 2, 0.5, train, False)
            got = []
            for function in (self.op, self.reference):
                torch.manual_seed(3)
                got.append(function(**stacked)[0])
            torch.testing.assert_close(*got)
            if train:
                assert not torch.allclose(got[0], self.op(**stacked)[0])

    def test_is_a_loop_of_cells(self, place):
        whole = case(self.kind, "cells", 6, 3, 5, 7).draw(torch.float64, place)
        given = [whole[n][0] if n in ("h", "c") else whole[n] for n in whole["order"]]
        outputs = []
        for x in whole["input"]:
            if self.kind == "lstm":
                given[:2] = lstm_cell(x, tuple(given[:2]), *given[2:])
            else:
                given[0] = gru_cell(x, *given)
            outputs.append(given[0])
        torch.testing.assert_close(self.op(**whole)[0], torch.stack(outputs))

    def test_compiled_packed_lengths_are_not_baked_in(self, device):
        """One graph serves other lengths: nothing in Python looks into batch_sizes."""
        torch._dynamo.reset()
        compiled = torch.compile(self.op, fullgraph=True, backend="aot_eager", dynamic=True)
        for lengths in ((4, 3, 1), (4, 2, 2)):
            drawn = case(self.kind, "lengths", 4, 3, 5, 7, lengths=lengths)
            arguments = drawn.draw(torch.float64, device)
            torch.testing.assert_close(compiled(**arguments)[0], self.op(**arguments)[0])

    def test_explain_names_the_kernels(self, place):
        arguments = self.cases[1].draw(torch.bfloat16, place)
        with pyops.explain() as log:
            results(self.op, arguments)
        assert [c.op for c in log.calls] == [self.kind, f"{self.kind}_backward"]
        where = ("cuda", "sm90") if place == "cuda" else pyops.isa()
        assert all(c.kernel.endswith(where) for c in log.calls)


class TestLstm(NetworkSuite):
    kind = "lstm"
    op, reference = staticmethod(network(lstm, kind)), staticmethod(network(torch.lstm, kind))
    transformable = staticmethod(loop(kind))

    @pytest.fixture(autouse=True)
    def reference_in_half(self, request):
        """Native hands the dtype to oneDNN, which refuses it on processors without its arithmetic.

        Empty input and projections do not go there.
        """
        if request.node.originalname != "test_autocast":
            return
        given = request.node.callspec.params
        fused = not given["case"].empty and "projected" not in given["case"].name
        packed = given["case"].arguments["sizes"] is not None
        half = given["half"]
        has_lstm = half == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if fused and not packed and not has_lstm:
            self.reference = in_half(self.reference, half)

    cases = [
        *network_cases(kind),
        case(kind, "tiny projected", 2, 2, 1, 2, projected=1),
        case(kind, "projected", 5, 19, 12, 34, projected=21, layers=2, directions=2),
        case(kind, "projected, packed", 4, 3, 8, 10, projected=4, bias=False, lengths=(4, 4, 1)),
    ]
    rejects = network_rejects(kind)


class TestGru(NetworkSuite):
    kind = "gru"
    op, reference = staticmethod(network(gru, kind)), staticmethod(network(torch.gru, kind))
    transformable = staticmethod(loop(kind))
    cases = network_cases(kind)
    rejects = network_rejects(kind)


def cell_cases(kind):
    def make(name, b, i, h, **form):
        parts = {n.removesuffix("_l0"): w for n, w in weights(kind, i, h, **form).items()}
        return Case(
            name, terms=(i + h) * GATES[kind] * h, input=Randn(b, i), **states(kind, h, b), **parts
        )

    return [
        make("tiny", 4, 3, 2),
        make("odd", 7, 19, 37),
        make("one row", 1, 65, 130),
        make("tiles of rows", 33, 40, 96),
        make("no bias", 5, 6, 9, bias=False),
        make("no rows", 0, 3, 4),
    ]


def cell_rejects(kind):
    op = f"{kind}_cell: "
    return [
        Reject(op + "input must be", input=Randn(2)),
        Reject(op + "hx.* must be \\(B, H", h=Randn(3, 2)),
        Reject(op + "w_ih must be", input=Randn(4, 4)),
        Reject(op + "w_hh must be", w_hh=Randn(4, 2)),
        Reject(op + "w_hh must be", w_hh=Randn(8)),
        Reject(op + "hx.* must be \\(B, H", h=Randn()),
        Reject(op + "b_ih must be", b_ih=Randn(5)),
        Reject(op + ".* must have the input's dtype", input=Randn(4, 3, dtype=torch.float64)),
    ]


def with_pair(function):
    """`function(input, (h, c), …)` taking h and c by name."""
    return lambda input, h, c, **rest: function(input, (h, c), **rest)


def with_state(function):
    return lambda input, h, **rest: function(input, h, **rest)


class CellSuite(RecurrentSuite):
    def test_states_may_be_written_to(self, place):
        """As those of native's on the CPU: a loop resets what ended by `h[done] = 0`."""
        gradients = []
        for function, device in ((self.op, place), (self.reference, "cpu")):
            arguments = self.cases[1].draw(torch.float64, device)
            states = flat(function(**arguments))
            for state in states:
                state[::2] = 0
            loss = sum(state.square().sum() for state in states)
            gradients.append(torch.autograd.grad(loss, [*tensors_of(arguments).values()]))
        torch.testing.assert_close(*gradients, check_device=False)


class TestLstmCell(CellSuite):
    op = staticmethod(with_pair(lstm_cell))
    reference = staticmethod(with_pair(torch.lstm_cell))
    transformable = staticmethod(step("lstm"))
    cases, rejects = cell_cases("lstm"), cell_rejects("lstm")

    @pytest.mark.parametrize("low", ["h", "c"])
    def test_autocast_keeps_the_precision_of_c(self, low):
        """Of states in two dtypes, as after a projection, c is the one that carries on."""
        arguments = self.cases[1].draw(torch.float32, grad=False)
        arguments[low] = arguments[low].bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            self.judge(arguments, self.cases[1])


class TestGruCell(CellSuite):
    op = staticmethod(with_state(gru_cell))
    reference = staticmethod(with_state(torch.gru_cell))
    transformable = staticmethod(step("gru"))
    cases, rejects = cell_cases("gru"), cell_rejects("gru")
