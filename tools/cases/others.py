"""Comparison of a solved case with torch.nn and ONNX Runtime, where they have its options."""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.utils import rnn as packing

from cases.equations import OWN_ACTIVATIONS, doubles, order, results


def plain(config):
    """Whether torch.nn has the cell."""
    own = config.activations in ((), tuple(OWN_ACTIVATIONS[config.cell]))
    bounds = config.clip is not None or config.cell_clip is not None
    before = config.cell == "gru" and config.gru_reset == "before"
    return own and not (bounds or before or config.peephole or config.coupled)


def torch_module(config, **options):
    options |= {"bias": config.bias, "dtype": torch.float64}
    if config.lstm:
        kind, options["proj_size"] = torch.nn.LSTM, config.proj_size
    elif config.cell == "gru":
        kind = torch.nn.GRU
    else:
        kind, options["nonlinearity"] = torch.nn.RNN, config.cell.removeprefix("rnn_")
    return kind(hidden_size=config.hidden_size, **options)


def torch_call(config, module, weights, x, h, c):
    """torch.nn's layer with these weights: y and the state."""
    arguments = (x, (h, c) if config.lstm else h)
    y, state = torch.func.functional_call(module, weights, arguments)
    return (y, *state) if config.lstm else (y, state, state)


def torch_whole(config, values):
    """One call of torch.nn for all layers, directions and sequences."""
    module = torch_module(
        config,
        input_size=config.input_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
    )
    weights = {name: values[name] for name, _ in module.named_parameters()}
    x, lengths = values["x"], values.get("lengths")
    if lengths is not None:
        x = packing.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, hn, cn = torch_call(config, module, weights, x, values["h0"], values.get("c0"))
    if lengths is not None:
        y, _ = packing.pad_packed_sequence(y, total_length=config.steps)
    return y, hn, cn


def pieces(config, direction, length, reset):
    """The valid steps of a sequence, cut at resets and at the end of burn-in. Before each piece stands
    what happens to the state."""
    found = [(torch.clone, [])]
    for t in order(config, direction):
        if reset is not None and reset[t]:
            found.append((torch.zeros_like, []))
        if t < length:
            found[-1][1].append(t)
        if t + 1 == config.burn_in:
            found.append((torch.detach, []))
    return found


def torch_sequence(config, module, weights, x, h, c, parts):
    """A call of torch.nn for each piece of a sequence x [T,I]: y [T,P] and the state."""
    y = [torch.zeros(config.output_size, dtype=torch.float64)] * config.steps
    for change, steps in parts:
        h, c = change(h), change(c)
        if steps:
            rows, h, c = torch_call(config, module, weights, x[steps], h[None], c[None])
            h, c = h[0], c[0]
            for t, row in zip(steps, rows, strict=True):
                y[t] = row.detach() if t < config.burn_in else row
    return torch.stack(y), h, c


def torch_pieces(config, values):
    """Calls of torch.nn for pieces of each layer, direction and sequence."""
    lengths, reset = values.get("lengths"), values.get("reset")
    inputs, hn, cn = values["x"], [], []
    for layer in range(config.num_layers):
        module = torch_module(config, input_size=inputs.shape[2])
        names = [name.removesuffix("_l0") for name, _ in module.named_parameters()]
        outputs = []
        for direction, suffix in enumerate(config.suffixes(layer)):
            weights = {name + "_l0": values[name + suffix] for name in names}
            h0 = values["h0"][layer * config.directions + direction]
            c0 = values["c0"][layer * config.directions + direction] if config.lstm else h0
            found = []
            for n in range(config.batch):
                length = config.steps if lengths is None else lengths[n]
                parts = pieces(config, direction, length, None if reset is None else reset[:, n])
                x = inputs[:, n]
                found.append(torch_sequence(config, module, weights, x, h0[n], c0[n], parts))
            y, h, c = zip(*found, strict=True)
            outputs.append(torch.stack(y, dim=1))
            hn.append(torch.stack(h))
            cn.append(torch.stack(c))
        inputs = torch.cat(outputs, dim=2)
    return inputs, torch.stack(hn), torch.stack(cn)


def compare_with_torch(config, tensors, solved):
    """Raises ValueError where they differ. How it was compared; "" if torch.nn has not the cell."""
    if not plain(config):
        return ""
    lengths = tensors.get("lengths")
    empty = lengths is not None and not lengths.all()
    whole = not (config.burn_in or empty or "reset" in tensors)
    values, names = doubles(config, tensors)
    outputs = (torch_whole if whole else torch_pieces)(config, values)
    found = results(config, values, names, *outputs)
    assert found.keys() == solved.keys()
    for name, value in found.items():
        agree("torch.nn", name, value, solved[name], 1e-10)
    return "whole" if whole else "pieces"


def agree(who, name, got, want, tolerance):
    error = np.abs(got - want).max(initial=0)
    # `not <=`, so that a NaN is no agreement.
    if not error <= tolerance * max(1, np.abs(want).max(initial=0)):
        raise ValueError(f"{who}: {name} differs by {error:.2e}")


def onnx_session(config, tensors, suffixes, joined):
    """A layer in ONNX Runtime, which has no projection: with `joined` x and h are one input."""
    # torch has i, f, g, o and r, z, n; ONNX i, o, f, g and z, r, n, and i, o, f for peepholes.
    gates = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}.get(config.cell, [0])

    def stacked(name, rows=gates):
        blocks = (np.split(tensors[name + suffix], len(rows)) for suffix in suffixes)
        return np.stack([np.concatenate([block[row] for row in rows]) for block in blocks])

    w, r = stacked("weight_ih"), stacked("weight_hh")
    if joined:
        w, r = np.concatenate([w, r], axis=2), np.zeros((*r.shape[:2], config.hidden_size), "f4")
    constants = {"W": w, "R": r}
    if config.bias:
        constants["B"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    if config.peephole:
        constants["P"] = stacked("weight_p", [0, 2, 1]).reshape(len(suffixes), -1)
    attributes = {
        "hidden_size": config.hidden_size,
        "direction": "bidirectional" if len(suffixes) == 2 else "forward",
    }
    if config.clip is not None:
        attributes["clip"] = config.clip
    if config.cell == "gru":
        attributes["linear_before_reset"] = int(config.gru_reset == "after")
    if config.coupled:
        attributes["input_forget"] = 1
    slots = list(config.slots()) * len(suffixes)
    attributes["activations"] = [known.onnx for known, _, _ in slots]
    # Its defaults for these are all 0, which is not ONNX's for ThresholdedRelu; ONNX has none for the
    # others. With none of them it must come to the same defaults by itself.
    stated = {"Affine", "ScaledTanh", "ThresholdedRelu"} & {known.onnx for known, _, _ in slots}
    if config.alpha or config.beta or stated:
        # The lists have values only for the activations that have the parameter.
        lists = {
            "activation_alpha": [alpha for _, alpha, _ in slots if alpha is not None],
            "activation_beta": [beta for _, _, beta in slots if beta is not None],
        }
        attributes |= {name: values for name, values in lists.items() if values}

    kind = {"lstm": "LSTM", "gru": "GRU"}.get(config.cell, "RNN")
    inputs = ["X", "W", "R", "B" if config.bias else "", "lengths", "h0"]
    outputs = ["Y", "hn"]
    if config.lstm:
        inputs += ["c0", "P" if config.peephole else ""]
        outputs += ["cn"]

    def declared(name):
        kind = TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, None)

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **attributes)],
        "layer",
        [declared(name) for name in inputs if name and name not in constants],
        [declared(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def onnx_whole(config, tensors):
    """A call of ONNX Runtime for each layer."""
    lengths = tensors.get("lengths", np.full(config.batch, config.steps)).astype(np.int32)
    inputs, hn, cn = tensors["x"], [], []
    for layer in range(config.num_layers):
        suffixes = config.suffixes(layer)
        at = slice(layer * len(suffixes), (layer + 1) * len(suffixes))
        feed = {"X": inputs, "lengths": lengths, "h0": tensors["h0"][at]}
        if config.lstm:
            feed["c0"] = tensors["c0"][at]
        y, *state = onnx_session(config, tensors, suffixes, False).run(None, feed)
        for final, initial, collected in zip(state, ("h0", "c0"), (hn, cn), strict=False):
            # It gives 0 for an empty sequence, where a case has the initial state.
            final[:, lengths == 0] = feed[initial][:, lengths == 0]
            collected.extend(final)
        inputs = y.transpose(0, 2, 1, 3).reshape(config.steps, config.batch, -1)
    return inputs, np.stack(hn), np.stack(cn) if cn else None


def onnx_steps(config, tensors):
    """A call of ONNX Runtime for each step of each layer and direction."""
    lengths = tensors.get("lengths", np.full(config.batch, config.steps))
    reset = tensors.get("reset", np.zeros((config.steps, config.batch)))
    one = np.ones(config.batch, np.int32)
    none = np.zeros((1, config.batch, config.hidden_size), np.float32)
    inputs, hn, cn = tensors["x"], [], []
    for layer in range(config.num_layers):
        outputs = []
        for direction, suffix in enumerate(config.suffixes(layer)):
            session = onnx_session(config, tensors, [suffix], bool(config.proj_size))
            at = layer * config.directions + direction
            h = tensors["h0"][at]
            c = tensors["c0"][at] if config.lstm else h
            y = np.zeros((config.steps, config.batch, config.output_size), np.float32)
            for t in order(config, direction):
                keep = np.float32(reset[t] == 0)[:, None]
                h, c = h * keep, c * keep
                feed = {"X": inputs[t][None], "lengths": one, "h0": h[None]}
                if config.proj_size:
                    feed |= {"X": np.concatenate([inputs[t], h], axis=1)[None], "h0": none}
                if config.lstm:
                    feed["c0"] = c[None]
                _, h_new, *c_new = session.run(None, feed)
                h_new, c_new = h_new[0], c_new[0][0] if c_new else c
                if config.proj_size:
                    h_new = h_new @ tensors["weight_hr" + suffix].T
                live = (t < lengths)[:, None]
                y[t] = np.where(live, h_new, 0)
                h, c = np.where(live, h_new, h), np.where(live, c_new, c)
            outputs.append(y)
            hn.append(h)
            cn.append(c)
        inputs = np.concatenate(outputs, axis=2)
    return inputs, np.stack(hn), np.stack(cn)


def compare_with_onnx(config, tensors, solved):
    """As `compare_with_torch`, without the gradients."""
    if config.cell_clip is not None:
        return ""
    steps = config.proj_size or "reset" in tensors
    outputs = (onnx_steps if steps else onnx_whole)(config, tensors)
    for name, value in zip(("out.y", "out.hn", "out.cn"), outputs, strict=True):
        if name in solved:
            agree("ONNX Runtime", name, value, solved[name], 1e-4)
    return "steps" if steps else "whole"
