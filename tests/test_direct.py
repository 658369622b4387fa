"""Functions that skip `torch.ops`: whoever watches PyTorch's calls still sees them."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyops.functional as P


def image():
    return torch.rand(1, 1, 4, 4)


def rows():
    return torch.rand(1, 1, 3, 4)


CALLS = {
    "conv2d": lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3)),
    "conv2d_relu": lambda: P.conv2d_relu(image(), torch.rand(1, 1, 3, 3)),
    "conv2d_relu_max_pool2d": lambda: P.conv2d_relu_max_pool2d(image(), torch.rand(1, 1, 3, 3)),
    "max_pool2d": lambda: P.max_pool2d(image(), 2),
    "max_pool2d_with_indices": lambda: P.max_pool2d(image(), 2, return_indices=True),
    "scaled_dot_product_attention": lambda: P.scaled_dot_product_attention(rows(), rows(), rows()),
}


class Notes:
    def __init__(self):
        super().__init__()
        self.names = []

    def note(self, func, args, kwargs):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeesFunctions(Notes, TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.note(func, args, kwargs)


class SeesOperators(Notes, TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.note(func, args, kwargs)


@pytest.mark.parametrize("op", CALLS)
def test_a_function_mode_sees_the_call(op):
    with SeesFunctions() as seen:
        CALLS[op]()
    assert any(name.startswith(f"pyops.{op}") for name in seen.names), seen.names


@pytest.mark.parametrize("op", CALLS)
def test_a_dispatch_mode_sees_operators_of_ours(op):
    with SeesOperators() as seen:
        CALLS[op]()
    assert any(name.startswith("pyops.") for name in seen.names), seen.names


def test_a_subclass_sees_the_call():
    class Watched(torch.Tensor):
        names = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.names.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    P.max_pool2d(image().as_subclass(Watched), 2)
    assert any(name.startswith("pyops.max_pool2d") for name in Watched.names), Watched.names


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda: P.conv2d(image(), [1.0]), r"conv2d\(\): .*weight: .*Tensor"),
        (lambda: P.conv2d(image(), torch.rand(1, 1, 3, 3), groups="2"), r"conv2d\(\): .*groups: "),
        (lambda: P.max_pool2d(image(), 2.5), r"max_pool2d\(\): .*kernel_size: Tuple\[int, ...\]"),
    ],
)
def test_a_wrong_type_names_op_and_argument(call, expected):
    with pytest.raises(TypeError, match=f"(?s){expected}"):
        call()


@pytest.mark.parametrize(
    "size", [numpy.int64(2), (numpy.int32(2), 1), [1, numpy.int64(2)]], ids=str
)
def test_integers_of_numpy_are_integers(size):
    x, w = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    assert torch.equal(P.max_pool2d(x, size, size), F.max_pool2d(x, size, size))
    assert P.conv2d(x, w, None, size).shape == F.conv2d(x, w, None, size).shape


def test_a_wrong_value_is_the_operators_to_refuse():
    with pytest.raises(RuntimeError, match="conv2d: groups must be at least 1, got 0"):
        P.conv2d(image(), torch.rand(1, 1, 3, 3), groups=0)
