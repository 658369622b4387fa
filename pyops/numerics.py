"""The error rule: what "as accurate as native" means, in one place.

A result is measured against the same computation by the native op on float64 copies of the inputs.
Its error may be a small multiple of the error that native itself makes in the same dtype, plus the
noise of one rounding; the rule must hold in the L2 norm and in the max norm. The form of the rule
is FlashAttention's. A reference that is mostly zeros or one constant proves nothing and fails.

The rounding error of one draw is a sample of one, and so is native's: of two kernels equally good,
one exceeds 1.5 times the other's in a few draws of a hundred. So where errors alone speak against a
result, the geometric means over several draws decide (`settle`): ill-conditioned draws do not
outweigh the others. But an error far beyond what rounding does to any draw is a wrong result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from statistics import geometric_mean

import torch
from torch import Tensor

MAX_ZEROS = 0.3
"""Largest share of zeros, or of one repeated value, in a reference that still proves something."""

MOSTLY_ZEROS = 0.95
"""The same where zeros are the result's nature: gradients of max poolings and of dead ReLUs."""

DRAWS = 16
"""How many draws of the inputs decide where one does not pass."""

GROSS = 16.0
"""How many times what is allowed a single draw may err. The most that right results did, in some
thousand draws of every op and in all of PyTorch's samples of the modules, was 1.1 (a whole decoder
layer 3.1) in bfloat16 and float16, 6.0 (two LSTMs deep 7.4) in float32, where a gradient cancels.
"""

_SMALLEST = 1e-9  # error that counts in a mean: what is allowed in float64
_CONSTANT_SAMPLE = 65536
_CONSTANT_MIN = 8
_KINK_NOISE = 1e-2


@dataclass(frozen=True)
class Verdict:
    """The errors of one tensor beside native's, what was allowed, and whether the rule holds."""

    err_l2: float
    err_max: float
    native_l2: float
    native_max: float
    allowed_l2: float
    allowed_max: float
    fault: str = ""
    """What is wrong whatever the errors: shape, dtype, a misplaced NaN, a vacuous reference."""
    kinked: bool = False
    """A gradient in which one flipped decision moves whole entries, though rarely many."""

    @property
    def reason(self) -> str:
        """Why the result fails, in one sentence; empty when it passes."""
        return self.fault or self._excess()

    @property
    def passed(self) -> bool:
        """True when the rule holds."""
        return not self.reason

    @property
    def ratio_l2(self) -> float:
        """Our L2 error in units of native's; NaN where native makes none."""
        return _ratio(self.err_l2, self.native_l2)

    @property
    def ratio_max(self) -> float:
        """Our max-norm error in units of native's; NaN where native makes none."""
        return _ratio(self.err_max, self.native_max)

    @property
    def used(self) -> float:
        """The share of the allowance used up, the worse of both norms: over 1 fails."""
        shares = (_share(self.err_l2, self.allowed_l2), _share(self.err_max, self.allowed_max))
        return math.nan if any(map(math.isnan, shares)) else max(shares)

    def _excess(self) -> str:
        for norm in ("l2", "max"):
            err, limit = getattr(self, f"err_{norm}"), getattr(self, f"allowed_{norm}")
            if not err <= limit:
                native = getattr(self, f"native_{norm}")
                return f"{norm} error {err:.2e} exceeds {limit:.2e} (native's own is {native:.2e})"
        return ""


UNJUDGED = Verdict(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)


def err_l2(x: Tensor, ref: Tensor) -> float:
    """`‖x - ref‖ / ‖ref‖` in float64; 0 for empty tensors."""
    return _norm_ratio(x, ref, l2=True)


def err_max(x: Tensor, ref: Tensor) -> float:
    """`max|x - ref| / max|ref|` in float64; 0 for empty tensors."""
    return _norm_ratio(x, ref, l2=False)


def allowed(
    dtype: torch.dtype,
    direction: str,
    native: float,
    *,
    terms: int = 1,
    precision: str | None = None,
    exact: bool = False,
) -> float:
    """The largest error that passes, where native's own error is `native`.

    direction: "forward" for outputs, "backward" for gradients. terms: length of the longest sum
    behind one element (K, or K·T through a recurrence); float32's noise grows with its logarithm.
    precision: as `torch.get_float32_matmul_precision()`, which is the default, or "tf32", which is
    what a GPU makes of the lower ones. exact: the op only selects values, so nothing is allowed.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"allowed: direction must be 'forward' or 'backward', got {direction!r}")
    if exact:
        return 0.0
    if dtype.is_complex:
        dtype = dtype.to_real()
    if dtype == torch.float64:
        return 1e-9
    if dtype == torch.float32:
        precision = precision or torch.get_float32_matmul_precision()
        # 3e-7 is what sums of up to 2**12 terms leave in float32 when added in blocks.
        noise = {
            "highest": 3e-7 * max(1.0, math.log2(max(terms, 1)) / 12),
            "high": 2e-5,
            "tf32": 2.0**-10,
            "medium": torch.finfo(torch.bfloat16).eps,
        }[precision]
        return max(1.5 * native, noise)
    if dtype in (torch.bfloat16, torch.float16):
        # A correctly rounded result is off by about a quarter of eps in the mean square.
        return (2.0 if direction == "forward" else 3.0) * native + torch.finfo(dtype).eps / 4
    return 0.0


def vacuous(ref: Tensor, max_zeros: float = MAX_ZEROS) -> str:
    """Why a comparison with `ref` proves nothing, or "" when it does prove something."""
    if ref.numel() == 0:
        return ""
    ref = torch.view_as_real(ref) if ref.is_complex() else ref
    zeros = (ref == 0).double().mean().item()
    if zeros > max_zeros:
        return f"vacuous: {zeros:.0%} of the reference is zero"
    values = ref.detach().flatten()
    values = values[:: max(1, values.numel() // _CONSTANT_SAMPLE)]
    values = values[values != 0]
    if values.numel() < _CONSTANT_MIN:
        return ""
    repeated = torch.unique(values, return_counts=True)[1].max().item() / values.numel()
    if repeated > max_zeros:
        return f"vacuous: {repeated:.0%} of the reference is one constant"
    return ""


def compare(
    ours: Tensor,
    native: Tensor,
    ref64: Tensor,
    *,
    direction: str = "forward",
    terms: int = 1,
    precision: str | None = None,
    exact: bool = False,
    max_zeros: float = MAX_ZEROS,
    kinks: bool = False,
) -> Verdict:
    """Judge `ours` by the error rule, beside `native` of the same dtype, against `ref64`.

    NaN and infinities must stand where native has them; errors are taken over the finite elements.
    max_zeros: MOSTLY_ZEROS where zeros are the result's nature; 1.0 takes any reference.
    kinks: a gradient through the ReLUs or max poolings of a whole model, where a decision that
    flips on the last bit moves whole entries: 1 % in the L2 norm passes, the max norm goes free.
    See `allowed` for the other arguments.
    """
    for what in ("shape", "dtype"):
        if getattr(ours, what) != getattr(native, what):
            fault = f"{what} is {getattr(ours, what)}, native's {getattr(native, what)}"
            return replace(UNJUDGED, fault=fault)
    ours, native, ref64 = ours.detach(), native.detach(), ref64.detach()
    finite = ours.isfinite() & native.isfinite() & ref64.isfinite()
    special = ~native.isfinite() | ~ours.isfinite()
    placed = torch.allclose(ours[special], native[special], equal_nan=True)
    ours, native, ref64 = ours[finite], native[finite], ref64[finite]
    native_l2, native_max = err_l2(native, ref64), err_max(native, ref64)
    limit_l2, limit_max = (
        allowed(native.dtype, direction, err, terms=terms, precision=precision, exact=exact)
        for err in (native_l2, native_max)
    )
    if kinks and native.dtype != torch.float64:
        limit_l2, limit_max = max(limit_l2, _KINK_NOISE), math.inf
    fault = "" if placed else "NaN or infinity is not where native has it"
    return Verdict(
        err_l2(ours, ref64),
        err_max(ours, ref64),
        native_l2,
        native_max,
        limit_l2,
        limit_max,
        fault or vacuous(ref64, max_zeros),
    )


def settle(verdicts_of: Callable[[int], Mapping[str, Verdict]]) -> dict[str, Verdict]:
    """The verdicts on draw 0 of the inputs; where only errors fail, those on DRAWS together.

    These are on the mean errors, or on the first draw that has a fault or a gross error.
    verdicts_of: from the number of a draw to its verdicts by name.
    """
    first = dict(verdicts_of(0))
    if all(verdict.passed or _certain(verdict) for verdict in first.values()):
        return first
    draws = [first, *map(verdicts_of, range(1, DRAWS))]
    together = {name: [draw[name] for draw in draws] for name in first}
    return {name: next(filter(_certain, own), None) or _mean(own) for name, own in together.items()}


def _certain(verdict: Verdict) -> bool:
    """Whether it fails for what no draw's luck explains."""
    used = verdict.used
    if verdict.kinked:
        used = verdict.err_l2 / max(verdict.allowed_l2, _KINK_NOISE)
    return bool(verdict.fault) or not used <= GROSS


def _mean(verdicts: list[Verdict]) -> Verdict:
    errors = [field.name for field in fields(Verdict) if field.type == "float"]
    means = {
        name: geometric_mean([max(getattr(verdict, name), _SMALLEST) for verdict in verdicts])
        for name in errors
    }
    return Verdict(**means, fault="", kinked=verdicts[0].kinked)


def _norm_ratio(x: Tensor, ref: Tensor, *, l2: bool) -> float:
    if ref.numel() == 0:
        return 0.0
    wide = torch.complex128 if ref.is_complex() else torch.float64
    x, ref = x.detach().to(wide), ref.detach().to(wide)
    norm = torch.linalg.vector_norm
    order = 2 if l2 else math.inf
    difference, size = norm(x - ref, order).item(), norm(ref, order).item()
    return difference / size if size else (math.inf if difference else 0.0)


def _ratio(ours: float, native: float) -> float:
    return ours / native if native else math.nan


def _share(err: float, limit: float) -> float:
    return err / limit if limit else (math.inf if err else 0.0)
