"""scaled_dot_product_attention."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import pyops
from judging import assert_accurate, judge
from suite import DTYPES, HALF, ISAS, Case, OpSuite, Randn, Reject, isas, on_devices, results

sdpa = pyops.functional.scaled_dot_product_attention


def native(**arguments):
    """Native's choice; its composite inside transforms, which the fused kernel does not know."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or torch.autograd.forward_ad._current_level >= 0:
        return composite(**arguments)
    return F.scaled_dot_product_attention(**arguments)


def composite(**arguments):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(**arguments)


def seen(*shape):
    """A boolean mask, four fifths true, no row without a key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 1 / 5
    mask[..., 0] = True
    return mask


def case(name, b=2, h=3, l=37, s=41, d=16, e=None, g=None, **arguments):  # noqa: E741
    g, e = g or h, d if e is None else e
    query, key, value = Randn(b, h, l, d), Randn(b, g, s, d), Randn(b, g, s, e)
    return Case(name, query=query, key=key, value=value, **arguments)


class TestAttention(OpSuite):
    op, reference = staticmethod(sdpa), staticmethod(native)

    @pytest.fixture(autouse=True)
    def reference_of_nonfinite(self, request):
        """Of infinite keys native's fused kernel makes what neither its composite nor float64 do.

        In bfloat16 their rows' outputs are even finite.
        """
        if request.node.originalname == "test_nonfinite":
            self.reference = composite

    def assert_lies_as(self, native, ours, place):
        """On a GPU each of native's kernels has a layout of its own; ours is the query's there."""
        if place != "cuda":
            super().assert_lies_as(native, ours, place)

    cases = [
        case("float mask", b=1, h=2, l=3, s=4, d=4, attn_mask=Randn(3, 4)),
        case("plain"),
        case("causal, more keys", b=1, l=5, s=7, d=4, is_causal=True),
        case("causal, more queries", l=41, s=37, is_causal=True),
        case("grouped heads", b=1, h=4, g=2, l=3, s=4, d=4, enable_gqa=True),
        case("grouped, causal, mask", h=6, g=2, attn_mask=seen(6, 37, 41), enable_gqa=True),
        case("value dimension, scale", b=1, h=2, l=5, s=7, d=3, e=6, scale=-0.7),
        case("boolean mask", attn_mask=seen(37, 41)),
        case("key padding", attn_mask=seen(2, 1, 1, 41)),
        case("mask of heads", attn_mask=Randn(3, 37, 41)),
        case("mask of batches", attn_mask=Randn(2, 1, 37, 41)),
        case("mask of keys", attn_mask=Randn(2, 1, 1, 41)),
        case("mask of everything", attn_mask=Randn(2, 3, 37, 41)),
        case("one query", l=1, s=300, d=17),
        case("long and narrow", h=2, l=300, s=1000, d=3),
        case("long and causal", h=2, l=300, s=310, d=8, is_causal=True),
        case("odd dimension", b=1, l=65, s=127, d=77),
        Case("two", query=Randn(37, 16), key=Randn(41, 16), value=Randn(41, 16)),
        Case(
            "three",
            query=Randn(2, 37, 16),
            key=Randn(2, 41, 16),
            value=Randn(2, 41, 16),
        ),
        Case(
            "five dimensions",
            query=Randn(2, 2, 3, 37, 16),
            key=Randn(2, 2, 3, 41, 16),
            value=Randn(2, 2, 3, 41, 16),
            attn_mask=Randn(2, 1, 1, 37, 41),
        ),
        Case(
            "broadcast",
            query=Randn(37, 16),
            key=Randn(2, 1, 41, 16),
            value=Randn(1, 3, 41, 16),
        ),
        case("no batch", b=0),
        case("no queries", l=0),
        case("no keys", s=0),
        case("no value", e=0),
        case("several blocks", h=1, l=260, s=520, d=8),
    ]
    rejects = [
        Reject("must have at least 2 dimensions", query=Randn(4)),
        Reject(
            "key and value must have the query's dtype", key=Randn(1, 2, 4, 4, dtype=torch.float64)
        ),
        Reject(
            "key and value must have the query's dtype",
            key=torch.ones(1, 2, 4, 4, dtype=torch.int32),
        ),
        Reject(r"key must be \(…, S, D\) with the query's D=4", key=Randn(1, 2, 4, 5)),
        Reject(
            "the batch dimensions .* must broadcast", key=Randn(3, 2, 4, 4), query=Randn(2, 2, 3, 4)
        ),
        Reject("the batch dimensions .* must broadcast", key=Randn(1, 3, 4, 4)),
        Reject(r"attn_mask must broadcast to \(B, H, L, S\)=\[1, 2, 3, 4\]", attn_mask=Randn(3, 5)),
        Reject("attn_mask must be bool, float or", attn_mask=Randn(3, 4, dtype=torch.float64)),
        Reject("attn_mask must be bool, float or", attn_mask=torch.ones(3, 4, dtype=torch.int32)),
        Reject(r"dropout_p must lie in \[0, 1\], got 1.5", dropout_p=1.5),
        Reject(r"dropout_p must lie in \[0, 1\], got -0.5", attn_mask=None, dropout_p=-0.5),
        Reject("heads of key and value must divide", query=Randn(1, 3, 3, 4), enable_gqa=True),
    ]


def draw(*sizes, dtype=torch.float32, device="cpu", grad=True, **more):
    """Query, key and value of these sizes, in the order of `case`."""
    return case(str(sizes), *sizes, **more).draw(dtype, device, grad=grad)


LENGTHS = [1, 13, 14, 15, 63, 64, 65, 127, 255, 256, 257]


def assert_selects(l, s, e, dtype, device, isas):  # noqa: E741
    """Scores so far apart that the softmax selects one key: every index shows, tolerance 0."""
    generator = torch.Generator().manual_seed(l * 1000 + s)
    chosen = torch.randint(s, (2, l), generator=generator)
    code = ((torch.arange(s)[:, None] >> torch.arange(9) & 1) * 2 - 1).to(dtype)
    value = torch.randint(-9, 9, (1, 2, s, e), generator=generator).to(dtype)
    grad = torch.randint(-2, 3, (1, 2, l, e), generator=generator).to(dtype)
    index = chosen[None, :, :, None].expand(1, 2, l, e).to(device)
    query, key = 512 * code[chosen][None], code.expand(1, 2, s, 9)
    query, key, value, grad = (t.to(device) for t in (query, key, value, grad))
    for isa in isas:
        leaf = value.clone().requires_grad_()
        with pyops.isa_cap(isa):
            out = sdpa(query, key, leaf, scale=1.0)
            out.backward(grad)
        assert torch.equal(out, value.gather(2, index)), isa
        assert torch.equal(leaf.grad, torch.zeros_like(value).scatter_add(2, index, grad)), isa


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("s", LENGTHS)
@pytest.mark.parametrize("l", LENGTHS[::2])
def test_selects(l, s, dtype, device):  # noqa: E741
    here = ISAS[: ISAS.index(pyops._C.isa_detected()) + 1]
    assert_selects(l, s, 5, dtype, device, here if device == "cpu" else ["sm_80", "sm_90"])


def wide(dtype, place):
    """A float32 mask goes with every dtype but float64, where native misreads it; on a CPU only."""
    return torch.float32 if place != "cuda" and dtype != torch.float64 else dtype


class TestSoftmaxRows:
    """Rows at the edge of what a softmax can do; `place` as everywhere."""

    pytest_generate_tests = OpSuite.pytest_generate_tests
    cases = rejects = ()
    dtypes = DTYPES
    place = OpSuite.place

    def judge(self, **arguments):
        ours, _ = judge(sdpa, native, arguments, max_zeros=1.0)
        return ours

    @pytest.mark.parametrize("kind", [torch.bool, torch.float32], ids=str)
    def test_fully_masked_rows_are_zero(self, kind, dtype, place):
        mask = torch.ones(5, 300, dtype=torch.bool)
        mask[1] = mask[4] = False
        if kind == torch.float32:
            mask = torch.zeros(5, 300, dtype=wide(dtype, place)).masked_fill(~mask, -torch.inf)
        ours = self.judge(
            **draw(1, 2, 5, 300, 8, dtype=dtype, device=place), attn_mask=mask.to(place)
        )
        assert not ours["output0"][:, :, [1, 4]].any()
        assert not ours["grad_query"][:, :, [1, 4]].any()

    def test_lowest_mask_is_a_uniform_row(self, dtype, place):
        """finfo.min swallows every score, so the mean of the values remains, with its gradient."""
        if dtype == torch.float16:
            pytest.skip("float16's lowest number swallows no score")
        inputs = draw(1, 2, 5, 300, 8, dtype=dtype, device=place)
        mask = torch.zeros(5, 300, dtype=dtype)
        mask[1] = torch.finfo(dtype).min
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's logsumexp cannot hold such a row
            ours = self.judge(**inputs, attn_mask=mask.to(place))
        mean = inputs["value"].detach().double().mean(2)
        assert_accurate({"": ours["output0"][:, :, 1]}, {"": mean.to(dtype)}, {"": mean})

    @pytest.mark.parametrize("size", [100.0, 1e4])
    def test_scores_beyond_the_exponential(self, size, dtype, place):
        inputs = draw(1, 2, 9, 300, 8, dtype=dtype, grad=False, device=place)
        inputs["query"] = inputs["query"].sign() * size
        inputs["key"] = inputs["key"].sign()
        self.judge(**inputs)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
    @pytest.mark.parametrize("where", ["key", "value"])
    def test_causal_hides_nonfinite_keys(self, where, bad, dtype, place):
        """Queries before a bad key do not see it, wherever tiles end."""
        if (place, where) == ("cuda", "value"):
            pytest.skip("as native's kernels there, a whole tile is multiplied: 0 times NaN is NaN")
        for at in (7, 130, 299):
            inputs = draw(1, 2, 300, 300, 8, dtype=dtype, grad=False, device=place)
            clean = sdpa(**inputs, is_causal=True)
            inputs[where][:, :, at] = bad
            out = sdpa(**inputs, is_causal=True)
            assert_close(out[:, :, :at], clean[:, :, :at])
            assert not out[:, :, at].isfinite().all()

    @pytest.mark.parametrize("where", ["key", "value"])
    def test_masks_let_nan_through_as_native(self, where, dtype, place):
        inputs = draw(1, 2, 5, 7, 8, dtype=dtype, grad=False, device=place)
        inputs[where][:, :, 2] = torch.nan
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[:, 2] = False
        for m in (mask, torch.zeros(5, 7, dtype=wide(dtype, place)).masked_fill(~mask, -torch.inf)):
            self.judge(**inputs, attn_mask=m.to(place))

    def test_mask_and_causal_hold_both(self, dtype, place):
        inputs = draw(1, 2, 70, 90, 8, dtype=dtype, device=place)
        mask = seen(70, 90).to(place)
        both = mask & torch.ones_like(mask).tril()
        ours = results(sdpa, {**inputs, "attn_mask": mask, "is_causal": True})
        folded = results(sdpa, {**inputs, "attn_mask": both})
        for name in ours:
            assert torch.equal(ours[name], folded[name]), name


ON_GPU = pytest.param("cuda", 1, marks=pytest.mark.cuda)
TILED = [
    case("whole blocks", h=2, l=256, s=256, d=64),
    case("blocks and a rest", b=1, h=2, l=161, s=289, d=80, e=48),
    case("causal blocks", h=2, l=300, s=300, d=64, is_causal=True),
    case("causal, wider than long", b=1, l=300, s=330, d=33, is_causal=True),
    case("grouped blocks", h=4, g=2, l=150, s=200, d=64, is_causal=True, enable_gqa=True),
    case("half a panel", b=1, l=13, s=520, d=32),
    case("one row more", b=1, h=1, l=129, s=129, d=65),
    case(
        "float mask of blocks", h=2, l=200, s=300, d=64, attn_mask=torch.linspace(-1, 1, 300)[None]
    ),
    case("boolean mask of blocks", h=2, l=200, s=300, d=64, attn_mask=seen(2, 200, 300)),
    case("mask and causal", b=1, h=2, l=200, s=220, d=24, attn_mask=seen(200, 220), is_causal=True),
    case("falling scale", b=1, h=2, l=100, s=200, d=32, scale=-0.2),
    case("keys beyond the cache", b=1, h=1, l=70, s=2100, d=144),
]


class TestTiles:
    """bfloat16 where the matrix unit's panels, strips and blocks end."""

    @pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cpu", 3), ON_GPU])
    @pytest.mark.parametrize("tiled", TILED, ids=lambda tiled: tiled.name)
    def test_by_the_rule(self, tiled, device, threads):
        arguments = tiled.draw(torch.bfloat16, device)
        mask = arguments.get("attn_mask")
        if device == "cuda" and mask is not None:
            if arguments.get("is_causal"):
                pytest.skip("native's float64 there takes no mask that is causal besides")
            if mask.is_floating_point():  # there in the tensors' dtype alone
                arguments["attn_mask"] = mask.bfloat16()
        torch.set_num_threads(threads)
        try:
            judge(sdpa, native, arguments, terms=tiled.terms)
        finally:
            torch.set_num_threads(1)

    @on_devices
    @pytest.mark.parametrize("s", LENGTHS)
    @pytest.mark.parametrize("l", LENGTHS[1::2])
    def test_selects(self, l, s, device):  # noqa: E741
        """Values as wide as keys."""
        assert_selects(l, s, 9, torch.bfloat16, device, ["amx" if device == "cpu" else "sm_90"])

    @on_devices
    def test_rising_scores(self, device):
        """The maximum of the first keys is soon too low, again and again."""
        inputs = draw(1, 2, 150, 1000, 64, dtype=torch.bfloat16, device=device)
        with torch.no_grad():
            inputs["query"][..., 0] = 8
            inputs["key"][..., 0] += torch.linspace(-40, 40, 1000, device=device)
        judge(sdpa, native, inputs, terms=2**20, max_zeros=1.0)

    @on_devices
    def test_same_results_again(self, device):
        inputs = draw(1, 3, 300, 700, 64, dtype=torch.bfloat16, device=device)
        first = results(sdpa, {**inputs, "dropout_p": 0.3})
        for _ in range(3):
            again = results(sdpa, {**inputs, "dropout_p": 0.3})
            assert all(torch.equal(first[name], again[name]) for name in first)


def sharp(name, l, s, d, e, **arguments):  # noqa: E741
    """Few keys outweigh all others, so that dP and its mean over them all but cancel."""
    query, key = Randn(1, 2, l, d, scale=64), Randn(1, 1, s, d)
    value = Randn(1, 1, s, e)
    return Case(name, query=query, key=key, value=value, enable_gqa=True, **arguments)


SHARP = [
    sharp("narrow values", 40, 300, 48, 17),
    sharp("wide values", 16, 300, 40, 64),
    sharp("causal", 300, 520, 24, 32, is_causal=True),
    sharp("boolean mask", 33, 700, 32, 40, attn_mask=seen(2, 33, 700)),
    sharp("mask's gradient", 20, 600, 32, 32, attn_mask=Randn(20, 600)),
]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rows", SHARP, ids=lambda rows: rows.name)
def test_sharp_rows_over_several_blocks(rows, dtype, isa):
    """Where native computes in float32 no gradient may show the rounding of the output."""
    with pyops.isa_cap(isa):
        judge(sdpa, native, rows.draw(dtype), max_zeros=1.0)


@on_devices
def test_one_key_is_taken_whole(device):
    inputs = draw(1, 2, 65, 1, 8, device=device)
    ours = results(sdpa, inputs)
    assert torch.equal(ours["output0"], inputs["value"].detach().expand(1, 2, 65, 8))
    assert ours["grad_query"].abs().max() < 1e-5


@on_devices
def test_grouped_heads_equal_repeated_ones(device):
    inputs = draw(2, 6, 33, 70, 16, g=2, device=device)
    repeated = {
        n: t if n == "query" else t.detach().repeat_interleave(3, 1).requires_grad_()
        for n, t in inputs.items()
    }
    ours = results(sdpa, {**inputs, "enable_gqa": True})
    wide = results(sdpa, repeated)
    assert torch.equal(ours["output0"], wide["output0"])
    assert torch.equal(ours["grad_query"], wide["grad_query"])
    for name in ("grad_key", "grad_value"):
        assert_close(ours[name], wide[name].unflatten(1, (2, 3)).sum(2))


@pytest.mark.parametrize("shape", [(1, 1, 1, 300), (70, 1), (2, 1, 1, 1), (1, 3, 70, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cpu", 3), ON_GPU])
def test_mask_gradient_is_reduced_over_broadcast_dimensions(shape, dtype, device, threads):
    inputs = draw(2, 3, 70, 300, 8, dtype=dtype, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mask = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        mask = mask.to(device, dtype).requires_grad_()
        ours = results(sdpa, {**inputs, "attn_mask": mask})["grad_attn_mask"]
        full = mask.detach().expand(2, 3, 70, 300).clone().requires_grad_()
        wide = results(sdpa, {**inputs, "attn_mask": full})["grad_attn_mask"].double()
    finally:
        torch.set_num_threads(before)
    assert ours.shape == shape
    reduced = wide.sum_to_size(shape)
    if dtype == torch.float32:
        assert_close(ours.double(), reduced, atol=2e-5, rtol=1e-4)
    else:  # what was added up had been rounded, and so was its sum
        slack = torch.finfo(dtype).eps * wide.abs().sum_to_size(shape)
        assert ((ours.double() - reduced).abs() <= slack).all()


@on_devices
def test_explain_names_the_kernel(device):
    inputs = draw(1, 2, 5, 7, 8, device=device)
    with pyops.explain() as log:
        sdpa(**inputs).sum().backward()
    assert [c.op for c in log.calls] == [
        "scaled_dot_product_attention",
        "scaled_dot_product_attention_backward",
    ]
    assert all(c.kernel.startswith("attention_") for c in log.calls)
