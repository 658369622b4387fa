"""ONNX Runtime and OpenVINO as peers of a forward pass: the op alone as an ONNX graph.

The weights are constants of that graph, as in use: a runtime may lay them out before the first call
as it likes, which a function that is handed them with every call may not. Activations are read and
results written where PyTorch has them; nothing is copied.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyops.certificate import Inputs, Op, Outputs, reference_of
from pyops.numerics import compare

from .clocks import Call

ACTIVATIONS = {"input", "query", "key", "value", "attn_mask", "h", "c", "h0", "c0"}
"""Tensors that differ from call to call; all others are weights."""

ERROR_SLACK = 10.0
"""A runtime may err so many times more than an op of ours, but not compute in another precision."""


def runtime_call(name: str, op: Op, inputs: Inputs) -> Call:
    """A call that runs `op` on `inputs` in the runtime, checked.

    Raises what the export or the runtime raises for an op or dtype that it does not know, and
    ValueError where the result is another one.
    """
    fixed = Inputs({k: t.detach().contiguous() for k, t in inputs.tensors.items()}, inputs.options)
    model = _onnx(op, fixed)
    with torch.no_grad():
        native = op.run(op.native, fixed)
    results = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in native]
    given = [t for k, t in fixed.tensors.items() if k in ACTIVATIONS]
    call = RUNTIMES[name](model, given, results)
    call()
    reference = reference_of(op, fixed).results
    for (output, exact), result, peer in zip(reference.items(), results, native, strict=True):
        verdict = compare(result, peer, exact)
        if verdict.fault or verdict.used > ERROR_SLACK:
            raise ValueError(f"wrong: {output}: {verdict.reason}")

    def run() -> object:
        call()
        return given, results  # kept: the runtimes hold addresses

    return run


class _Graph(nn.Module):
    """An op as a module that takes the activations."""

    def __init__(self, op: Op, inputs: Inputs) -> None:
        super().__init__()
        self.op, self.options, self.names = op, inputs.options, tuple(inputs.tensors)
        self.activations = [name for name in self.names if name in ACTIVATIONS]
        # A model's parameters have dots in their names, which a buffer's must not.
        self.weights = {name: f"weight{i}" for i, name in enumerate(self.names)}
        for name in set(self.names) - ACTIVATIONS:
            self.register_buffer(self.weights[name], inputs.tensors[name])

    def forward(self, *activations: Tensor) -> Outputs:
        given = dict(zip(self.activations, activations, strict=True))
        tensors = {
            name: given[name] if name in given else self.get_buffer(self.weights[name])
            for name in self.names
        }
        return self.op.run(self.op.native, Inputs(tensors, self.options))


def _onnx(op: Op, inputs: Inputs) -> bytes:
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs.options)):
        raise ValueError("takes tensors of integers, which would be constants of the graph")
    graph = _Graph(op, inputs).eval()
    given = tuple(inputs.tensors[name] for name in graph.activations)
    with _silence(), torch.no_grad():
        program = torch.onnx.export(graph, given, dynamo=True, verbose=False)
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter reports every step, and each operator of packages that are not installed."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _onnxruntime(model: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Call:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Its threads must not keep the cores busy while others are timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for bind, nodes, tensors in (
        (binding.bind_input, session.get_inputs(), inputs),
        (binding.bind_output, session.get_outputs(), outputs),
    ):
        for node, t in zip(nodes, tensors, strict=True):
            name = str(t.dtype).removeprefix("torch.").replace("float32", "float")
            element = onnx.TensorProto.DataType.Value(name.replace("float64", "double").upper())
            bind(node.name, "cpu", 0, element, tuple(t.shape), t.data_ptr())
    return lambda: session.run_with_iobinding(binding)


def _openvino(model: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Call:
    import openvino

    def shared(t: Tensor) -> Any:
        if t.dtype == torch.bfloat16:  # unknown to numpy
            return openvino.Tensor(t.view(torch.int16).numpy(), list(t.shape), openvino.Type.bf16)
        return openvino.Tensor(t.numpy(), shared_memory=True)

    precision = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(outputs[0].dtype, "f32")
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    for i, t in enumerate(inputs):
        request.set_input_tensor(i, shared(t))
    for i, t in enumerate(outputs):
        request.set_output_tensor(i, shared(t))
    return lambda: request.infer(share_outputs=True)


RUNTIMES: dict[str, Callable[[bytes, Sequence[Tensor], Sequence[Tensor]], Call]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
