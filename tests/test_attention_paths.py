"""scaled_dot_product_attention where native has two paths: a fused kernel and a composite."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pyops
from test_attention import draw, native, sdpa


def test_output_has_the_querys_layout_where_native_keeps_it():
    query = torch.randn(2, 5, 3, 8).transpose(1, 2)
    key, value = torch.randn(2, 2, 3, 7, 8)
    mask = torch.randn(5, 7)
    for arguments in (
        {},
        {"attn_mask": mask},
        {"attn_mask": mask[None]},
        {"attn_mask": mask.clone().requires_grad_()},
        {"dropout_p": 0.5},
        {"value": torch.randn(2, 3, 7, 6)},
        {"key": key.mT.contiguous().mT},
        {"query": query[:, :, :0]},
        {"query": query[:1]},
    ):
        given = {"query": query, "key": key, "value": value} | arguments
        assert sdpa(**given).stride() == native(**given).stride(), arguments


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"attn_mask": torch.zeros(1, 1, 5, 7)},
        {"attn_mask": torch.zeros(1, 5, 7)},
        {"attn_mask": torch.zeros(5, 7, requires_grad=True)},
        {"dropout_p": 0.5},
        {"query": torch.zeros(1, 2, 0, 8), "attn_mask": torch.zeros(1, 7), "dropout_p": 0.5},
        {"value": torch.zeros(1, 2, 7, 6)},
        {"query": torch.zeros(2, 5, 8)},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("backends", [[SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], []], ids=len)
def test_mask_and_causal_together_where_native_takes_them(change, backends):
    """Its fused kernel does; its composite refuses."""
    arguments = {**draw(1, 2, 5, 7, 8), "attn_mask": torch.zeros(5, 7), "is_causal": True} | change
    refusals = []
    with sdpa_kernel(backends or SDPBackend.MATH):
        for function in (native, sdpa):
            try:
                function(**arguments)
            except RuntimeError as error:
                assert "Explicit attn_mask should not be set when is_causal=True" in str(error)
                refusals.append(function)
    assert refusals in ([], [native, sdpa])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dropout_p": 0.5},
        {"value": torch.randn(1, 2, 7, 6)},
        {name: torch.randn(2, 7, 8) for name in ("query", "key", "value")},
        {"attn_mask": torch.randn(5, 7, requires_grad=True)},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("function", [native, sdpa])
def test_the_result_may_be_written_to_where_natives_may(change, function):
    """The backward of its fused kernel reads it, that of its composite does not."""
    arguments = draw(1, 2, 5, 7, 8) | change
    weight = torch.randn(arguments["query"].shape[-1], requires_grad=True)
    arguments["query"] = arguments["query"].detach() * weight
    gradients = []
    for write in (False, True):
        torch.manual_seed(0)
        y = function(**arguments)
        if write:
            y.add_(1)
        try:
            gradients += torch.autograd.grad(y.sum(), weight, retain_graph=True)
        except RuntimeError as error:
            assert not change
            assert "modified by an inplace operation" in str(error)
        else:
            assert change or not write
    assert len(gradients) == 1 or torch.equal(*gradients)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(layout, inference):
    with torch.inference_mode(inference):
        if layout == torch.jagged:
            parts = [torch.randn(3, 2, 8), torch.randn(5, 2, 8)]
            x = torch.nested.nested_tensor(parts, layout=layout).transpose(1, 2)
        else:
            x = torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(2, 5, 8)])
        with pyops.explain() as log:
            ours, theirs = sdpa(x, x, x), F.scaled_dot_product_attention(x, x, x)
        assert [call.kernel for call in log.calls] == ["native"]
        assert ours.is_nested and ours.layout == layout
        for a, b in zip(ours.unbind(), theirs.unbind(), strict=True):
            assert torch.equal(a, b)
