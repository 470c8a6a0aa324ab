#!/usr/bin/env python3
"""Times ONNX Runtime's LSTM, GRU and RNN on the shapes of ../shapes.toml, on the CPU or by WebGPU.

Forward only, since it has no gradients of them. A layer is a node; between layers stand what brings
[T, D, N, H] to [T, N, D·H]. GRU has its reset after the product, as PyTorch. Input and output are host
arrays, so that a time on WebGPU has both copies in it.

ONNX Runtime runs a node on the CPU, silently, where the provider has no kernel for it. So every shape
runs once with profiling first; its result has `placement` (which provider ran which operator, how
often) and `ran_on_requested_provider`. The output of that run is compared with the CPU provider's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import common
from common import Shape

CPU = "CPUExecutionProvider"
OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
#: How far two providers may be apart.
TOLERANCE = 1e-3


class Model:
    """The nodes and weights of a shape."""

    def __init__(self, shape: Shape) -> None:
        if shape.proj:
            raise NotImplementedError("ONNX's LSTM has no projection")
        self.shape, self.rng = shape, np.random.default_rng(1)
        self.nodes, self.constants = [], []
        merged = self.constant("merged", np.array([0, 0, -1]))
        below = "x"
        for layer, width in enumerate(shape.inputs()):
            y = self.recurrent(below, layer, width)
            turned = self.node("Transpose", [y], f"turned{layer}", perm=[0, 2, 1, 3])
            top = "y" if layer + 1 == shape.layers else f"x{layer + 1}"
            below = self.node("Reshape", [turned, merged], top)

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def recurrent(self, x: str, layer: int, width: int) -> str:
        shape = self.shape
        rows, bound = common.GATES[shape.cell] * shape.hidden, shape.hidden**-0.5

        def weights(name: str, *size: int) -> str:
            values = self.rng.uniform(-bound, bound, (shape.directions, *size))
            return self.constant(f"{name}{layer}", values.astype(np.float32))

        inputs = [
            x,
            weights("w", rows, width),
            weights("r", rows, shape.hidden),
            weights("b", 2 * rows),
        ]
        options: dict = {"hidden_size": shape.hidden}
        if shape.bidirectional:
            options["direction"] = "bidirectional"
        if shape.cell == "gru":
            options["linear_before_reset"] = 1
        if shape.cell == "rnn_relu":
            options["activations"] = ["Relu"] * shape.directions
        return self.node(OPERATORS[shape.cell], inputs, f"out{layer}", **options)

    def serialised(self) -> bytes:
        shape = self.shape

        def end(name: str, width: int):
            size = [shape.steps, shape.batch, width]
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)

        ends = [end("x", shape.input)], [end("y", shape.hidden * shape.directions)]
        graph = helper.make_graph(self.nodes, shape.name, *ends, self.constants)
        version = [helper.make_opsetid("", 14)]
        return helper.make_model(graph, opset_imports=version, ir_version=8).SerializeToString()


def session(model: bytes, provider: str, threads: int, profile: str = ""):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def profiled(model: bytes, x: np.ndarray, options) -> tuple[np.ndarray, Counter]:
    """The output of one run, and how often each operator ran on each provider."""
    with tempfile.TemporaryDirectory() as folder:
        run = session(model, options.provider, options.threads, f"{folder}/run")
        if options.provider not in run.get_providers():
            raise NotImplementedError(f"{options.provider} does not start on this machine")
        (y,) = run.run(None, {"x": x})
        events = json.loads(Path(run.end_profiling()).read_text())
    ran = Counter()
    for event in events:
        about = event.get("args", {})
        # Some versions write other events of a node beside its kernel's.
        if event["name"].endswith("_kernel_time") and "provider" in about:
            ran[about.get("op_name", "?"), about["provider"]] += 1
    return y, ran


def measure(shape: Shape, mode: str, options) -> dict:
    if mode == "train":
        raise NotImplementedError("ONNX Runtime has no gradients of recurrent layers")
    model = Model(shape).serialised()
    size = (shape.steps, shape.batch, shape.input)
    x = np.random.default_rng(2).uniform(-1, 1, size).astype(np.float32)

    y, ran = profiled(model, x, options)
    recurrent = {where for (operator, where) in ran if operator in OPERATORS.values()}
    there = recurrent == {options.provider}
    notes = [] if there else [f"the layer ran on {', '.join(sorted(recurrent)) or 'nothing known'}"]
    measured: dict = {
        "placement": {f"{operator} on {where}": n for (operator, where), n in sorted(ran.items())},
        "ran_on_requested_provider": there,
    }
    if options.provider != CPU:
        (want,) = session(model, CPU, options.threads).run(None, {"x": x})
        apart = float(np.abs(y - want).max())
        measured["max_abs_diff_vs_cpu"] = apart
        if not apart <= TOLERANCE:  # NaN as well
            note = f"its output is {apart:.3g} away from the CPU provider's"
            return common.row(shape, mode, "error", note, **measured)

    timed = session(model, options.provider, options.threads)
    measured |= common.sample(lambda: timed.run(None, {"x": x}), options)
    return common.row(shape, mode, note="; ".join(notes), **measured)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_options(parser)
    parser.add_argument("--provider", default=CPU, help=f"{CPU} or WebGpuExecutionProvider")
    parser.add_argument("--threads", type=int, default=common.threads(), help="of the CPU")
    parser.add_argument("--device-name", help="the adapter's name, which WebGPU does not tell")
    options = parser.parse_args()
    if options.provider not in onnxruntime.get_available_providers():
        known = ", ".join(onnxruntime.get_available_providers())
        parser.error(f"this build of ONNX Runtime has {known}")
    on_cpu = options.provider == CPU
    short = options.provider.removesuffix("ExecutionProvider").lower()
    report = common.Report(
        options.json,
        tool=f"onnxruntime-{short}",
        version=onnxruntime.__version__,
        device=options.device_name or (common.cpu() if on_cpu else "the adapter that it chose"),
        dtype="f32",
        settings={
            "provider": options.provider,
            "threads": options.threads,
            "min_time_s": options.min_time,
            "budget_s": options.budget,
            "timeout_s": options.timeout,
        },
    )
    for shape, mode in common.selected(options):
        # Who asks for training alone is told.
        if mode == "infer" or options.mode == "train":
            report.add(common.apart(measure, shape, mode, options))
    return int(any(r["status"] == "error" for r in report.results))


if __name__ == "__main__":
    sys.exit(main())
