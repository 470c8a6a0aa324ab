#!/usr/bin/env python3
"""The validation perplexity of a saved word-level LSTM, computed again without this library.

    pip install numpy
    cargo run --release --features cli -- train --save model.safetensors
    python3 tools/perplexity.py model.safetensors examples/data/pride_and_prejudice.txt

Reads the file with the standard library alone, splits the text as `wgrnn train` does, and runs the
equations of embedding, LSTM and softmax in double precision over the last tenth of the text, as one
stream. `wgrnn train` takes it as several streams, each from a zero state, so the last digit differs.
"""

import json
import re
import struct
import sys

import numpy as np


def load(path):
    """The weights in double precision, and the metadata."""
    data = open(path, "rb").read()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    weights = {}
    for name, info in header.items():
        start, end = info["data_offsets"]
        values = np.frombuffer(data[8 + size + start : 8 + size + end], "<f4")
        weights[name] = values.reshape(info["shape"]).astype(np.float64)
    return weights, metadata


def tokenize(text):
    pattern = r"[^\W_]+(?:['’][^\W_]+)*|--+|\S"
    for token in re.findall(pattern, text.replace("_", "")):
        yield "--" if token.startswith("--") else token.replace("’", "'").lower()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def perplexity(w, ids):
    h = np.zeros(w["rnn.weight_hh_l0"].shape[1])
    c = np.zeros_like(h)
    loss = 0.0
    for current, target in zip(ids, ids[1:]):
        gates = w["rnn.weight_ih_l0"] @ w["embedding.weight"][current] + w["rnn.bias_ih_l0"]
        gates += w["rnn.weight_hh_l0"] @ h + w["rnn.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits = w["linear.weight"] @ h + w["linear.bias"]
        top = logits.max()
        loss += top + np.log(np.exp(logits - top).sum()) - logits[target]
    return np.exp(loss / (len(ids) - 1))


def main():
    model, text = sys.argv[1:]
    weights, metadata = load(model)
    if (metadata["cell"], metadata["tokens"]) != ("lstm", "words"):
        sys.exit(f"an LSTM over words is needed, not {metadata['cell']} over {metadata['tokens']}")
    tokens = list(tokenize(open(text, encoding="utf-8").read()))
    ids = {token: i for i, token in enumerate(metadata["vocabulary"].splitlines())}
    held_out = [ids.get(token, 0) for token in tokens[len(tokens) - len(tokens) // 10 :]]
    print(f"{len(held_out)} tokens, perplexity {perplexity(weights, held_out):.2f}")


main()
