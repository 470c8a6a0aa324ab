#!/usr/bin/env python3
"""Solved cases of recurrent layers: the files of tests/data, and random ones of the same format.

    pip install torch numpy safetensors onnx onnxruntime
    python3 tools/make_cases.py tests/data                   # the cases of `named` not yet there
    python3 tools/make_cases.py FOLDER --fuzz 50 --seed 7    # random combinations of all options
    python3 tools/make_cases.py tests/data --verify          # solve what is there once more

tests/data/README.md describes the format. The results are those of cases/equations.py, in double
precision, with gradients by torch's automatic differentiation. Before a case is written they are
compared with two who know most of the options (cases/others.py):

- torch.nn, outputs and gradients in double precision, for every case whose cell is its own: not those
  with a bound, peepholes, coupled gates, the reset before the product or other activations.
- ONNX Runtime, outputs in single precision, for every case without a bound on the cell state.

What they lack around the cell, such as resets, is done by calling them for pieces of a sequence. The
table says which: "whole" sequences, "pieces" between resets and the like, or single "steps".

ReLU and its kind and every bound have a kink, and near one the gradient of a single-precision run may
be that of the other side. So inputs are drawn anew until no value comes close to one; the column
"margin" says how close the nearest is.
"""

import argparse
import random
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import save_file

from cases.equations import ACTIVATIONS, OWN_ACTIVATIONS, Config, solve
from cases.others import agree, compare_with_onnx, compare_with_torch


def draw(config, seed, scale):
    """Inputs, weights and the loss's gradients of a case."""
    generator = np.random.default_rng(seed)
    states = config.num_layers * config.directions
    h = (states, config.batch, config.output_size)
    c = (states, config.batch, config.hidden_size)
    y = (config.steps, config.batch, config.directions * config.output_size)

    def uniform(shape, bound):
        return generator.uniform(-bound, bound, shape).astype(np.float32)

    def normal(shape):
        return generator.standard_normal(shape).astype(np.float32)

    tensors = {"x": normal((*y[:2], config.input_size)), "h0": uniform(h, 1)}
    tensors |= {"dy": normal(y), "dhn": normal(h)}
    if config.lstm:
        tensors |= {"c0": uniform(c, 1), "dcn": normal(c)}
    bound = scale / config.hidden_size**0.5
    tensors |= {name: uniform(shape, bound) for name, shape in config.weight_shapes()}
    if config.lengths is not None:
        tensors["lengths"] = np.array(config.lengths, dtype=np.int64)
    if config.resets:
        reset = generator.random((config.steps, config.batch)) < config.resets
        tensors["reset"] = reset.astype(np.uint8)
    return tensors


def draw_and_solve(config, seed):
    """The best of some draws: results that do not grow beyond measure, and values far from kinks."""
    best, scale = None, config.scale
    for attempt in range(40):
        tensors = draw(config, [seed, attempt], scale)
        solved, margin = solve(config, tensors)
        largest = max(np.abs(value).max(initial=0) for value in solved.values())
        if not largest < 2000:
            # Gates without a bound multiply states without one.
            scale *= 0.7
            continue
        if best is None or margin > best[2]:
            best = tensors, solved, margin
        if margin > 1e-4:
            break
    if best is None:
        raise ValueError("no draw keeps the results small")
    return best


def named():
    def rnn(activation, **options):
        return Config("rnn_tanh", 5, 3, 4, 6, activations=(activation,), **options)

    return {
        "lstm_all_options": Config(
            "lstm", 7, 4, 3, 5, num_layers=2, proj_size=3, peephole=True, clip=0.9, cell_clip=0.3,
            scale=2.5, lengths=(4, 7, 0, 6), resets=0.25,
        ),
        "lstm_coupled_peephole": Config("lstm", 5, 3, 4, 6, peephole=True, coupled=True),
        "lstm_affine_scaledtanh": Config(
            "lstm", 5, 3, 4, 6, activations=("sigmoid", "affine", "scaledtanh"),
            alpha=(None, 0.7, 1.4), beta=(None, -0.2, 0.6),
        ),
        "lstm_leakyrelu_thresholded": Config(
            "lstm", 5, 3, 4, 6, activations=("hardsigmoid", "leakyrelu", "thresholdedrelu"),
            alpha=(0.3, 0.15, 0.1), beta=(0.45, None, None), scale=1.5,
        ),
        "lstm_some_parameters": Config(
            "lstm", 5, 3, 4, 6, activations=("hardsigmoid", "scaledtanh", "leakyrelu"),
            alpha=(None, 0.8, None), beta=(0.2, None, None), scale=2.0,
        ),
        "gru_before_bi_lengths": Config(
            "gru", 6, 4, 3, 5, gru_reset="before", bidirectional=True, lengths=(3, 6, 0, 5)
        ),
        "gru_before_clip_resets": Config(
            "gru", 8, 3, 4, 6, gru_reset="before", clip=0.5, scale=2.0, resets=0.25
        ),
        "gru_before_activations_resets": Config(
            "gru", 8, 3, 4, 6, gru_reset="before", activations=("hardsigmoid", "scaledtanh"),
            alpha=(0.6, 1.2), beta=(0.4, 0.7), scale=1.5, resets=0.25,
        ),
        "gru_softplus_elu": Config(
            "gru", 5, 3, 4, 6, activations=("softplus", "elu"), alpha=(None, 0.6)
        ),
        "rnn_activation_affine": rnn("affine", alpha=(0.6,), beta=(0.2,)),
        "rnn_activation_leakyrelu": rnn("leakyrelu", alpha=(0.2,), scale=1.5),
        "rnn_activation_thresholdedrelu": rnn("thresholdedrelu", alpha=(0.3,), scale=1.5),
        "rnn_activation_scaledtanh": rnn("scaledtanh", alpha=(1.3,), beta=(0.7,)),
        "rnn_activation_softsign": rnn("softsign"),
        "rnn_activation_softplus": rnn("softplus"),
        "rnn_activation_hardsigmoid": rnn("hardsigmoid", alpha=(0.6,), beta=(0.4,), scale=1.5),
        "lstm_bi_resets_lengths": Config(
            "lstm", 8, 4, 3, 5, bidirectional=True, resets=0.25, lengths=(5, 8, 2, 7)
        ),
        "lstm_burn_in": Config("lstm", 7, 3, 4, 6, burn_in=3),
        "lstm_burn_in_lengths_resets": Config(
            "lstm", 8, 4, 3, 5, burn_in=4, lengths=(6, 8, 3, 4), resets=0.2
        ),
        "gru_burn_in_two_layers": Config("gru", 7, 3, 4, 5, num_layers=2, burn_in=4),
        "rnn_burn_in_every_step": Config("rnn_tanh", 4, 2, 3, 4, burn_in=4),
        "rnn_one_step_bi_two_layers": Config(
            "rnn_tanh", 1, 3, 4, 5, num_layers=2, bidirectional=True
        ),
        "lstm_proj_bi_lengths_resets": Config(
            "lstm", 7, 4, 3, 6, proj_size=4, bidirectional=True, lengths=(7, 3, 5, 1), resets=0.25
        ),
        "lstm_peephole_coupled_proj_bi_two_layers": Config(
            "lstm", 5, 3, 4, 6, num_layers=2, bidirectional=True, proj_size=4, peephole=True,
            coupled=True,
        ),
        "lstm_clip_bi_two_layers_lengths": Config(
            "lstm", 6, 3, 4, 5, num_layers=2, bidirectional=True, clip=0.5, scale=2.0,
            lengths=(4, 6, 1),
        ),
    }


def random_parameters(rng, activations):
    """α and β for a list of activations, some of them left at their defaults, or none given."""
    ranges = {
        "affine": ((0.3, 1.1), (-0.4, 0.4)),
        "elu": ((0.3, 1.6), None),
        "hardsigmoid": ((0.1, 0.5), (0.2, 0.8)),
        "leakyrelu": ((-0.2, 0.6), None),
        "thresholdedrelu": ((-0.2, 0.6), None),
        "scaledtanh": ((0.5, 1.7), (0.4, 1.5)),
    }

    def value(name, which):
        between = ranges.get(name, (None, None))[which]
        if between is None or rng.random() < 0.2:
            return None
        return round(rng.uniform(*between), 3)

    def values(which):
        found = tuple(value(name, which) for name in activations)
        return found if any(v is not None for v in found) else ()

    return (values(0), values(1)) if rng.random() < 0.8 else ((), ())


def random_config(rng):
    cell = rng.choice(["lstm", "lstm", "gru", "gru", "rnn_tanh", "rnn_relu"])
    largest = rng.choice([4, 16, 40])
    config = Config(
        cell,
        steps=rng.randint(1, 24),
        batch=rng.randint(1, 20),
        input_size=rng.randint(1, largest),
        hidden_size=rng.randint(1, largest),
        num_layers=rng.choice([1, 1, 2, 3]),
        bidirectional=rng.random() < 0.4,
        bias=rng.random() < 0.8,
        clip=rng.choice([None, None, 0.6, 1.5]),
        resets=rng.choice([0.0, 0.0, 0.1, 0.4]),
        scale=rng.choice([1.0, 1.0, 2.0]),
    )
    if config.lstm:
        config.peephole, config.coupled = rng.random() < 0.4, rng.random() < 0.25
        config.cell_clip = rng.choice([None, None, None, 0.5])
        if config.hidden_size > 1 and rng.random() < 0.35:
            # torch.nn has projections to fewer units only.
            config.proj_size = rng.randint(1, config.hidden_size - 1)
    if cell == "gru":
        config.gru_reset = rng.choice(["after", "before"])
    if rng.random() < 0.4:
        count = len(OWN_ACTIVATIONS[cell])
        config.activations = tuple(rng.choices(list(ACTIVATIONS), k=count))
        config.alpha, config.beta = random_parameters(rng, config.activations)
    if rng.random() < 0.4:
        config.lengths = tuple(rng.randint(0, config.steps) for _ in range(config.batch))
    if not config.bidirectional and rng.random() < 0.35:
        config.burn_in = rng.randint(0, config.steps)
    return config


def compared(name, config, tensors, solved, margin):
    """Compares with the others and says so in a line."""
    try:
        by_torch = compare_with_torch(config, tensors, solved)
        by_onnx = compare_with_onnx(config, tensors, solved)
    except ValueError as error:
        raise SystemExit(f"{name}: {error}\n{config}") from error
    print(f"{name:42} {margin:8.1e}   {by_torch or '-':8} {by_onnx or '-'}")


def write(folder, name, config, seed):
    tensors, solved, margin = draw_and_solve(config, seed)
    compared(name, config, tensors, solved, margin)
    save_file(tensors | solved, folder / f"{name}.safetensors", config.metadata())


def verify(path):
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = Config.from_metadata(file.metadata(), tensors["x"])
    given = {name: value for name, value in tensors.items() if "." not in name}
    solved, margin = solve(config, given)
    for name, value in solved.items():
        agree(path.name, name, tensors[name], value, 1e-12)
    compared(path.stem, config, given, solved, margin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fuzz", type=int, metavar="COUNT", help="write random cases")
    parser.add_argument("--seed", type=int, default=1, help="of the random cases")
    parser.add_argument("--verify", action="store_true", help="write nothing, solve what is there")
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)
    folder = arguments.folder
    print(f"{'case':42} {'margin':8}   {'torch.nn':8} ONNX Runtime")
    if arguments.verify:
        for path in sorted(folder.glob("*.safetensors")):
            verify(path)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fuzz is None:
        for name, config in named().items():
            if not (folder / f"{name}.safetensors").exists():
                write(folder, name, config, zlib.crc32(name.encode()))
        return
    for index in range(arguments.fuzz):
        rng = random.Random(f"{arguments.seed}/{index}")
        config = random_config(rng)
        name = f"fuzz_{arguments.seed}_{index:03}"
        try:
            write(folder, name, config, rng.getrandbits(32))
        except ValueError as error:
            print(f"{name}: left out, {error}\n{config}", file=sys.stderr)


if __name__ == "__main__":
    main()
