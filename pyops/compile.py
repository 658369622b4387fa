"""`torch.compile(model, backend="pyops")`: our kernels in a compiled model.

Dynamo hands over a graph of torch calls. Those that pyops serves are replaced, neighbours fused
whatever function or module they came from, and TorchInductor compiles the rest.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import fx
from torch.nn import functional as native

from pyops import functional
from pyops.nn.attention import multi_head_attention_forward
from pyops.ops._size2 import pair

_OURS: dict[Any, Callable[..., Any]] = {
    native.conv2d: functional.conv2d,
    native.linear: functional.linear,
    native.max_pool2d: functional.max_pool2d,
    torch.max_pool2d: functional.max_pool2d,
    native.scaled_dot_product_attention: functional.scaled_dot_product_attention,
    native.multi_head_attention_forward: multi_head_attention_forward,
    torch.lstm: functional.lstm,
    torch.gru: functional.gru,
    torch.lstm_cell: functional.lstm_cell,
    torch.gru_cell: functional.gru_cell,
}
_RELU = {native.relu, torch.relu, torch.relu_, "relu", "relu_"}
_WITH_RELU = {
    functional.conv2d: functional.conv2d_relu,
    functional.linear: functional.linear_relu,
}


def backend(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend "pyops" of `torch.compile`; `mode` and `options` are TorchInductor's.

    Replaces convolutions, poolings, linear layers, attention and recurrent layers, and fuses
    conv2d + ReLU (+ max pooling) and linear + ReLU where nothing else reads what is between them.
    Training, dynamic shapes and autocast work as in any compiled model. A torch.nn.LSTM or GRU
    breaks the graph before it comes here; `pyops.accelerate` makes it traceable. Errors of
    TorchInductor, such as a missing C++ compiler, are its own.
    """
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    replace(graph)
    patches = {**list_mode_options(mode or "default"), **(options or {})}
    compiled = compile_fx(graph, example_inputs, config_patches=patches)
    return cast("Callable[..., Any]", compiled)


def replace(graph: fx.GraphModule) -> None:
    """Replace and fuse, in place, in `graph` and the graphs inside it (checkpoints, branches)."""
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.op == "call_function" and node.target in _OURS:
                    node.target = _OURS[node.target]
            for node in list(module.graph.nodes):
                _fuse(node)
            module.recompile()


def _fuse(first: fx.Node) -> None:
    """Take the ReLU, and the pooling beside it, into the convolution or linear call `first`."""
    if first.target not in _WITH_RELU:
        return
    readers = list(islice(_sole_readers(first), 2))
    relus, pools = list(filter(_is_relu, readers)), list(filter(_is_pool, readers))
    fits = len(relus) == len(pools) == 1 and (readers == relus + pools or _meets_image(pools[0]))
    if first.target is functional.conv2d and fits:
        # In either order: of elements ReLU and maximum commute, and both gradients pick the same.
        _absorb(readers, first, functional.conv2d_relu_max_pool2d, **_window(pools[0]))
    elif relus[:1] == readers[:1] != []:
        _absorb(relus[:1], first, _WITH_RELU[first.target])


def _sole_readers(node: fx.Node) -> Iterator[fx.Node]:
    """The only node that reads `node`, the only one that reads that, and so on."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        between = node.next
        while between is not reader:
            if between.is_impure():  # grad mode or autocast may change here
                return
            between = between.next
        yield reader
        node = reader


def _is_relu(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _RELU


def _is_pool(node: fx.Node) -> bool:
    return node.target is functional.max_pool2d and not _pool_arguments(node)["return_indices"]


def _meets_image(pool: fx.Node) -> bool:
    """Whether every window has an element of the image, as it has without padding, which is half
    of a window at most, or without gaps.

    One wholly in the padding is -inf: a ReLU after the pooling makes it 0, one before does not.
    """
    call = _pool_arguments(pool)
    padding, dilation = pair(call["padding"]), pair(call["dilation"])
    return all(padding[axis] == 0 or dilation[axis] == 1 for axis in (0, -1))


def _pool_arguments(node: fx.Node) -> dict[str, Any]:
    call = inspect.signature(functional.max_pool2d).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    return call.arguments


def _window(pool: fx.Node) -> dict[str, Any]:
    """The pooling's geometry as the fused function names it."""
    call = _pool_arguments(pool)
    window = {f"pool_{name}": call[name] for name in ("stride", "padding", "dilation")}
    return {"kernel_size": call["kernel_size"], "ceil_mode": call["ceil_mode"], **window}


def _absorb(
    readers: list[fx.Node], first: fx.Node, function: Callable[..., Any], **options: Any
) -> None:
    """Let `first` call `function` and stand for the last of `readers`; where it stands now, as an
    input might be written to further on.
    """
    first.target = function
    first.kwargs = {**first.kwargs, **options}
    first.meta["example_value"] = readers[-1].meta.get("example_value")
    readers[-1].replace_all_uses_with(first)
    for reader in reversed(readers):
        first.graph.erase_node(reader)
