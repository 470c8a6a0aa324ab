#!/usr/bin/env python3
"""Makes tests/data/import: weights in ONNX's and Keras's layouts, and what these systems compute.

    pip install numpy onnx onnxruntime keras jax
    python3 tools/make_import_cases.py

Each case is one model of recurrent layers with random weights (constant ones cannot show a wrong gate
order), a random input and a zero initial state, run by ONNX Runtime or by Keras. A file holds, in f32:

    x  [T, N, I]      y  [T, N, D*H]      the input and the last layer's output
    W.0 R.0 B.0 P.0                       ONNX, of layer 0, and so on
    kernel.0.0 recurrent_kernel.0.0 bias.0.0     Keras, of layer 0, direction 0, and so on

and as metadata what the layers are. The folder is relative to this script.
"""

import json
import os
import pathlib
import struct

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

FOLDER = pathlib.Path(__file__).parent.parent / "tests" / "data" / "import"
STEPS, BATCH, INPUT, HIDDEN = 5, 2, 3, 4
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def case(cell, layers=1, bidirectional=False, bias=True, peephole=False, reset_after=True):
    return dict(
        cell=cell,
        layers=layers,
        bidirectional=bidirectional,
        bias=bias,
        peephole=peephole,
        reset_after=reset_after,
    )


ONNX = {
    "rnn": case("rnn"),
    "rnn_bi_two_layers": case("rnn", layers=2, bidirectional=True),
    "lstm": case("lstm"),
    "lstm_nobias": case("lstm", bias=False),
    "lstm_peephole": case("lstm", peephole=True),
    "lstm_peephole_bi_two_layers": case("lstm", layers=2, bidirectional=True, peephole=True),
    "gru_after": case("gru"),
    "gru_before": case("gru", reset_after=False),
    "gru_after_bi_two_layers": case("gru", layers=2, bidirectional=True),
    "gru_nobias": case("gru", bias=False),
}
KERAS = {
    "rnn": case("rnn"),
    "rnn_bi_two_layers": case("rnn", layers=2, bidirectional=True),
    "lstm": case("lstm"),
    "lstm_nobias": case("lstm", bias=False),
    "lstm_bi_two_layers": case("lstm", layers=2, bidirectional=True),
    "gru_after": case("gru"),
    "gru_before": case("gru", reset_after=False),
    "gru_after_bi_two_layers": case("gru", layers=2, bidirectional=True),
    "gru_before_nobias": case("gru", bias=False, reset_after=False),
}


def random(rng, *shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def run_onnx(c, rng):
    """One operator per layer; [T, D, N, H] between them becomes [T, N, D*H]."""
    directions = 2 if c["bidirectional"] else 1
    rows = GATES[c["cell"]] * HIDDEN
    arrays = {"x": random(rng, STEPS, BATCH, INPUT)}
    nodes, below, width = [], "x", INPUT
    arrays["join"] = np.array([0, 0, -1], np.int64)
    for k in range(c["layers"]):
        arrays[f"W.{k}"] = random(rng, directions, rows, width)
        arrays[f"R.{k}"] = random(rng, directions, rows, HIDDEN)
        inputs = [below, f"W.{k}", f"R.{k}", "", "", ""]
        if c["bias"]:
            arrays[f"B.{k}"] = random(rng, directions, 2 * rows)
            inputs[3] = f"B.{k}"
        if c["peephole"]:
            arrays[f"P.{k}"] = random(rng, directions, 3 * HIDDEN)
            inputs += ["", f"P.{k}"]
        options = {"linear_before_reset": int(c["reset_after"])} if c["cell"] == "gru" else {}
        direction = "bidirectional" if c["bidirectional"] else "forward"
        nodes += [
            helper.make_node(
                c["cell"].upper(),
                inputs,
                [f"apart{k}"],
                hidden_size=HIDDEN,
                direction=direction,
                **options,
            ),
            helper.make_node("Transpose", [f"apart{k}"], [f"beside{k}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"beside{k}", "join"], [f"y{k}"]),
        ]
        below, width = f"y{k}", directions * HIDDEN
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, arrays["x"].shape)],
        [helper.make_tensor_value_info(below, TensorProto.FLOAT, (STEPS, BATCH, width))],
        [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items() if name != "x"],
    )
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run([below], {"x": arrays["x"]})
    del arrays["join"]
    return arrays | {"y": y}


def keras_layer(c):
    layer = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    options = {"reset_after": c["reset_after"]} if c["cell"] == "gru" else {}
    one = layer[c["cell"]](HIDDEN, return_sequences=True, use_bias=c["bias"], **options)
    return keras.layers.Bidirectional(one) if c["bidirectional"] else one


def run_keras(c, rng):
    """Keras's own arrays by the names it gives them; x and y there are [N, T, ...]."""
    model = keras.Sequential([keras.Input((STEPS, INPUT))] + [keras_layer(c) for _ in range(c["layers"])])
    arrays = {"x": random(rng, STEPS, BATCH, INPUT)}
    for k, layer in enumerate(model.layers):
        parts = [layer.forward_layer, layer.backward_layer] if c["bidirectional"] else [layer]
        for d, part in enumerate(parts):
            for variable in part.weights:
                if "seed_generator" in variable.path:
                    continue
                variable.assign(random(rng, *variable.shape))
                arrays[f"{variable.name}.{k}.{d}"] = np.asarray(variable)
    y = np.asarray(model(np.swapaxes(arrays["x"], 0, 1)))
    return arrays | {"y": np.swapaxes(y, 0, 1)}


def save(name, arrays, metadata):
    """A safetensors file; the same arrays make the same bytes."""
    header, blob = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for key, array in sorted(arrays.items()):
        data = np.ascontiguousarray(array, "<f4").tobytes()
        offsets = [len(blob), len(blob) + len(data)]
        header[key] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        blob += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (FOLDER / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blob)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for system, version, cases, run in [
        ("onnx", f"ONNX Runtime {onnxruntime.__version__}", ONNX, run_onnx),
        ("keras", f"Keras {keras.__version__}, {keras.backend.backend()}", KERAS, run_keras),
    ]:
        for number, (name, c) in enumerate(cases.items()):
            arrays = run(c, np.random.default_rng([number, len(system)]))
            assert arrays["y"].shape == (STEPS, BATCH, HIDDEN * (1 + c["bidirectional"]))
            metadata = {key: str(value).lower() for key, value in c.items()}
            metadata |= dict(
                made_by=version, input_size=str(INPUT), hidden_size=str(HIDDEN), system=system
            )
            save(f"{system}_{name}", arrays, metadata)
            print(f"{system}_{name}: {sorted(arrays)}")


main()
