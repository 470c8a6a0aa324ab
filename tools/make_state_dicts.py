#!/usr/bin/env python3
"""Makes tests/data/state_dict: state dicts of PyTorch modules, and what the modules compute.

    pip install torch numpy safetensors
    python3 tools/make_state_dicts.py

Each file is the state dict of a module whose attribute `rnn` is a recurrent layer, with PyTorch's own random
weights, and beside it a random input and the layer's results from a zero initial state. The folder is
relative to this script.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "state_dict"
STEPS, BATCH, INPUT, HIDDEN = 6, 3, 5, 7


class Module(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = {"num_layers": 2, "bidirectional": True}
    layers = {
        "lstm": lambda: torch.nn.LSTM(INPUT, HIDDEN, proj_size=3, **options),
        "gru": lambda: torch.nn.GRU(INPUT, HIDDEN, **options),
    }
    for seed, (name, layer) in enumerate(layers.items()):
        torch.manual_seed(seed)
        module = Module(layer())
        x = torch.randn(STEPS, BATCH, INPUT)
        with torch.no_grad():
            y, state = module.rnn(x)
        states = dict(zip(("hn", "cn"), state)) if name == "lstm" else {"hn": state}
        tensors = module.state_dict() | {"x": x, "y": y} | states
        path = FOLDER / f"{name}.safetensors"
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, path, metadata={"made_by": f"PyTorch {torch.__version__}"})
        print(f"{path.name}: {path.stat().st_size} bytes, {sorted(tensors)}")


main()
