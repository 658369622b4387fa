import math
from dataclasses import replace

import pytest
import torch

from pyops import numerics
from pyops.cases import OPS
from pyops.certificate import float32_precision
from pyops.numerics import Verdict, allowed, compare, err_l2, err_max, settle, vacuous

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def matmul(dtype):
    """Operands of a product, the product in `dtype`, and in float64 from the same operands."""
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    return a @ b, a.double() @ b.double()


def test_errors_are_relative_norms():
    ref = torch.tensor([3.0, -4.0])
    x = torch.tensor([3.0, -3.0])
    assert err_l2(x, ref) == pytest.approx(1 / 5)
    assert err_max(x, ref) == pytest.approx(1 / 4)
    assert err_l2(x, x) == err_max(x, x) == 0
    assert err_l2(torch.empty(0), torch.empty(0)) == 0
    assert err_max(torch.ones(1), torch.zeros(1)) == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_native_passes_its_own_rule(dtype, direction):
    native, ref = matmul(dtype)
    verdict = compare(native, native, ref, direction=direction)
    assert verdict.passed, verdict.reason
    assert verdict.used <= 1
    if verdict.native_l2:
        assert verdict.ratio_l2 == verdict.ratio_max == 1


# Just outside the rule: four times native's own error, or the least that float64 must see.
@pytest.mark.parametrize(
    ("dtype", "slip"),
    [(torch.float64, 2e-9), (torch.float32, 2e-6), (torch.bfloat16, 0.03), (torch.float16, 4e-3)],
)
def test_a_slightly_wrong_result_fails(dtype, slip):
    native, ref = matmul(dtype)
    wrong = (ref * (1 + slip)).to(dtype)
    verdict = compare(wrong, native, ref)
    assert not verdict.passed
    assert "exceeds" in verdict.reason
    assert verdict.used > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_fails_in_the_max_norm(dtype):
    native, ref = matmul(dtype)
    wrong = native.clone()
    wrong[17, 63] = 0.8 * ref.abs().max()
    assert "error" in compare(wrong, native, ref).reason


def test_bfloat16_accumulation_is_not_float32():
    native, ref = matmul(torch.float32)
    assert not compare(native.bfloat16().float(), native, ref).passed


def test_precision_follows_pytorchs_switch():
    assert allowed(torch.float32, "forward", 0.0) == 3e-7
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert allowed(torch.float32, "forward", 0.0) == 2e-5
        assert allowed(torch.float32, "forward", 0.0, precision="highest") == 3e-7
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_precision_on_a_gpu_follows_two_switches(allow_tf32):
    """cuDNN's, for convolutions and recurrent layers; a cell is two linear layers to native."""
    rounded = "tf32" if allow_tf32 else "highest"
    expected = {
        "conv2d_relu": rounded,
        "lstm": rounded,
        "lstm_cell": "highest",
        "linear": "highest",
    }
    with torch.backends.cudnn.flags(allow_tf32=allow_tf32):
        for name, precision in expected.items():
            assert float32_precision("cuda:0", cudnn=OPS[name].cudnn) == precision
            assert float32_precision("cpu", cudnn=OPS[name].cudnn) == "highest"
    assert 4e-4 < allowed(torch.float32, "forward", 0.0, precision="tf32") < 1e-3


def test_noise_grows_with_the_logarithm_of_the_sum():
    assert allowed(torch.float32, "forward", 0.0, terms=2**12) == 3e-7
    assert allowed(torch.float32, "forward", 0.0, terms=2**24) == 6e-7


def test_native_error_widens_the_rule():
    assert allowed(torch.float32, "forward", 1e-5) == pytest.approx(1.5e-5)
    noise = torch.finfo(torch.bfloat16).eps / 4
    assert allowed(torch.bfloat16, "forward", 1e-2) == pytest.approx(2e-2 + noise)
    assert allowed(torch.bfloat16, "backward", 1e-2) == pytest.approx(3e-2 + noise)
    assert allowed(torch.bfloat16, "forward", 1e-2, exact=True) == 0


def test_exact_means_exact():
    ref = torch.randn(8, 8).double()
    native = ref.float().double()
    slip = native.clone()
    slip[0, 0] += 1e-12
    assert compare(native, native, native, exact=True).passed
    assert not compare(slip, native, native, exact=True).passed


@pytest.mark.parametrize("zeros", [0.2, 0.4])
def test_a_reference_of_zeros_is_vacuous(zeros):
    ref = torch.randn(1000, dtype=torch.float64)
    ref[: int(1000 * zeros)] = 0
    verdict = compare(ref, ref, ref)
    assert verdict.passed == (zeros <= numerics.MAX_ZEROS)
    assert compare(ref, ref, ref, max_zeros=1.0).passed


def test_a_constant_reference_is_vacuous():
    assert "constant" in vacuous(torch.full((100,), 2.5))
    assert "constant" in vacuous(torch.cat([torch.randn(60), torch.full((40,), 2.5)]))
    assert vacuous(torch.randn(100)) == ""
    assert vacuous(torch.empty(0)) == ""


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_values_stand_where_native_has_them(special):
    native, ref = matmul(torch.float32)
    native[3, 4] = ref[3, 4] = special
    assert compare(native, native, ref).passed
    for wrong in (0.0, -special if math.isinf(special) else math.inf):
        ours = native.clone()
        ours[3, 4] = wrong
        assert "NaN or infinity" in compare(ours, native, ref).reason
    ours = native.clone()
    ours[0, 0] = special
    assert "NaN or infinity" in compare(ours, native, ref).reason


def test_shape_and_dtype_are_part_of_the_result():
    native, ref = matmul(torch.bfloat16)
    assert "dtype" in compare(native.float(), native, ref).reason
    assert "shape" in compare(native[None], native, ref).reason


def test_kinks_allow_a_flipped_decision_in_gradients_of_models():
    native, ref = matmul(torch.float32)
    flipped = native.clone()
    flipped[0, 0] += 0.005 * ref.norm()
    assert not compare(flipped, native, ref, direction="backward").passed
    assert compare(flipped, native, ref, direction="backward", kinks=True).passed
    assert not compare(1.02 * native, native, ref, direction="backward", kinks=True).passed


def draws(*errors, native=1e-6, dtype=torch.float32):
    """`verdicts_of` for `settle`: in turn these errors of ours beside native's own."""

    def verdicts_of(draw):
        err = errors[draw] if draw < len(errors) else errors[-1]
        limit = allowed(dtype, "forward", native)
        return {"y": Verdict(err, err, native, native, limit, limit)}

    return verdicts_of


def test_an_unlucky_draw_is_settled_by_others():
    assert settle(draws(1.2e-6))["y"].err_l2 == 1.2e-6
    assert not draws(2e-6)(0)["y"].passed
    assert settle(draws(2e-6, 1.1e-6))["y"].passed


# Native's error, as large as one rounding makes it or much smaller.
NATIVE = [
    (torch.float32, 1e-6),
    (torch.float32, 1e-8),
    (torch.bfloat16, 2e-3),
    (torch.bfloat16, 1e-5),
    (torch.float16, 3e-4),
    (torch.float16, 1e-6),
]


@pytest.mark.parametrize(("dtype", "native"), NATIVE)
@pytest.mark.parametrize("wrong", [0, 1, 15])
def test_no_number_of_draws_excuses_a_wrong_result(wrong, dtype, native):
    """As large as the result in a single draw, with the others as good as native's."""
    errors = [1.1 * allowed(dtype, "forward", native), *[0.9 * native] * 15]
    assert settle(draws(*errors, native=native, dtype=dtype))["y"].passed
    errors[wrong] = 1.0
    verdict = settle(draws(*errors, native=native, dtype=dtype))["y"]
    assert not verdict.passed
    assert verdict.err_l2 == 1.0


@pytest.mark.parametrize(("dtype", "native"), NATIVE)
def test_errors_a_little_too_large_in_every_draw_fail(dtype, native):
    error = 1.05 * allowed(dtype, "forward", native)
    assert not settle(draws(error, native=native, dtype=dtype))["y"].passed


@pytest.mark.parametrize(("error", "passed"), [(0.05, True), (0.5, False)])
def test_a_flipped_decision_is_no_gross_error(error, passed):
    """It moves some entries of one draw's gradient; one that is wrong altogether still fails."""

    def verdicts_of(draw):
        return {"y": replace(others(draw)["y"], kinked=True)}

    others = draws(error, *[1e-7] * 15, native=1e-7)
    assert settle(verdicts_of)["y"].passed == passed
    assert not settle(others)["y"].passed


def test_a_gross_error_asks_for_no_other_draw():
    first = draws(1e-3)
    assert not settle(lambda draw: first(draw) if draw == 0 else pytest.fail())["y"].passed


def test_a_fault_in_one_draw_is_one():
    def verdicts_of(draw):
        fault = "NaN or infinity is not where native has it" if draw == 3 else ""
        return {"y": replace(draws(2e-6, 1e-6)(draw)["y"], fault=fault)}

    assert "NaN" in settle(verdicts_of)["y"].reason
