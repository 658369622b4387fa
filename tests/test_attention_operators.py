"""attention_forward and attention_backward, called past the operator that checks for them."""

import pytest
import torch

from suite import Case, Randn, Reject, on_devices

SHARED = dict(
    query=Randn(2, 4, 5, 8),
    key=Randn(2, 2, 7, 8),
    value=Randn(2, 2, 7, 6),
    mask=Randn(1, 1, 5, 7),
    seed=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
)
FORWARD = SHARED | dict(query_layout=False)
BACKWARD = SHARED | dict(
    grad=Randn(2, 4, 5, 6),
    out=Randn(2, 4, 5, 6),
    row_max=Randn(2, 4, 5),
    row_scale=Randn(2, 4, 5),
    wanted=[True] * 4,
)


def refuses(operator, arguments, reject, device):
    case = Case(operator, **arguments | reject.arguments)
    with pytest.raises(RuntimeError, match=f"{operator}: {reject.match}"):
        getattr(torch.ops.pyops, operator)(**case.draw(torch.float32, device, grad=False))


@pytest.mark.parametrize(
    "reject",
    [
        Reject("query, key and value must be", query=Randn(4, 5, 8)),
        Reject("query, key and value must be", query=Randn(1, 4, 5, 8)),
        Reject("query, key and value must be", query=Randn(2, 3, 5, 8)),
        Reject("query, key and value must be", key=Randn(2, 0, 7, 8), value=Randn(2, 0, 7, 6)),
        Reject("query, key and value must be", key=Randn(2, 2, 7, 9)),
        Reject("query, key and value must be", value=Randn(2, 2, 6, 6)),
        Reject("key and value must have the query's", key=Randn(2, 2, 7, 8, dtype=torch.half)),
        Reject("mask must be of 4 dimensions", mask=Randn(5, 7)),
        Reject("mask must be of 4 dimensions", mask=Randn(1, 3, 5, 7)),
        Reject("mask must be bool, float or", mask=Randn(1, 1, 5, 7, dtype=torch.half)),
        Reject("dropout_p must lie in", dropout_p=-0.5),
    ],
    ids=lambda reject: reject.match,
)
@on_devices
def test_kernels_get_what_they_take(reject, device):
    refuses("attention_forward", FORWARD, reject, device)
    refuses("attention_backward", BACKWARD, reject, device)


@pytest.mark.parametrize(
    "reject",
    [
        Reject("grad must be", grad=Randn(2, 4, 5, 8)),
        Reject("out must be", out=Randn(1)),
        Reject(
            "row_max must be .* Float, got .* Double", row_max=Randn(2, 4, 5, dtype=torch.double)
        ),
        Reject("row_scale must be", row_scale=Randn(2, 4, 6)),
        Reject("a gradient of the mask is wanted", mask=None),
    ],
    ids=lambda reject: reject.match,
)
@on_devices
def test_backward_gets_what_a_forward_left(reject, device):
    refuses("attention_backward", BACKWARD, reject, device)


@on_devices
def test_dropout_needs_keys_and_a_probability(device):
    seed = torch.tensor(1, device=device)
    for p, size, message in (0.5, [], "size must end in"), (1.5, [2, 3], "dropout_p must lie in"):
        with pytest.raises(RuntimeError, match=f"attention_dropout: {message}"):
            torch.ops.pyops.attention_dropout(seed, p, size)
