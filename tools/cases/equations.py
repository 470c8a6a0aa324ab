"""The equations of a case's layer, in double precision, with gradients."""

from dataclasses import dataclass, fields

import torch
from torch.nn import functional

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
OWN_ACTIVATIONS = {
    "rnn_tanh": ["tanh"],
    "rnn_relu": ["relu"],
    "lstm": ["sigmoid", "tanh", "tanh"],
    "gru": ["sigmoid", "tanh"],
}


@dataclass(frozen=True)
class Activation:
    """A function of v, α and β, its parameters' defaults (None: it has none), and its kinks."""

    onnx: str
    of: callable
    alpha: float | None = None
    beta: float | None = None
    kinks: callable = lambda a, b: []


ACTIVATIONS = {
    "sigmoid": Activation("Sigmoid", lambda v, a, b: torch.sigmoid(v)),
    "tanh": Activation("Tanh", lambda v, a, b: torch.tanh(v)),
    "relu": Activation("Relu", lambda v, a, b: torch.relu(v), kinks=lambda a, b: [0]),
    "affine": Activation("Affine", lambda v, a, b: a * v + b, 1.0, 0.0),
    "softsign": Activation("Softsign", lambda v, a, b: v / (1 + v.abs())),
    "softplus": Activation("Softplus", lambda v, a, b: functional.softplus(v, threshold=100)),
    "elu": Activation("Elu", lambda v, a, b: functional.elu(v, a), 1.0, kinks=lambda a, b: [0]),
    "hardsigmoid": Activation(
        "HardSigmoid",
        lambda v, a, b: (a * v + b).clamp(0, 1),
        0.2,
        0.5,
        lambda a, b: [-b / a, (1 - b) / a],
    ),
    "leakyrelu": Activation(
        "LeakyRelu", lambda v, a, b: functional.leaky_relu(v, a), 0.01, kinks=lambda a, b: [0]
    ),
    "thresholdedrelu": Activation(
        "ThresholdedRelu",
        lambda v, a, b: functional.threshold(v, a, 0),
        1.0,
        kinks=lambda a, b: [a],
    ),
    "scaledtanh": Activation("ScaledTanh", lambda v, a, b: a * torch.tanh(b * v), 1.0, 1.0),
}


@dataclass
class Config:
    """A layer and the sequences it is given. From `scale` on, how a case is drawn."""

    cell: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    proj_size: int = 0
    bidirectional: bool = False
    bias: bool = True
    peephole: bool = False
    coupled: bool = False
    gru_reset: str = "after"
    clip: float | None = None
    cell_clip: float | None = None
    activations: tuple = ()
    alpha: tuple = ()
    beta: tuple = ()
    burn_in: int = 0
    scale: float = 1.0
    lengths: tuple | None = None
    resets: float = 0.0

    @property
    def output_size(self):
        return self.proj_size or self.hidden_size

    @property
    def directions(self):
        return 2 if self.bidirectional else 1

    @property
    def lstm(self):
        return self.cell == "lstm"

    def suffixes(self, layer):
        """What the names of a layer's weights end with, by direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    def weight_shapes(self):
        rows = GATES[self.cell] * self.hidden_size
        for layer in range(self.num_layers):
            columns = self.directions * self.output_size if layer else self.input_size
            for suffix in self.suffixes(layer):
                yield "weight_ih" + suffix, (rows, columns)
                yield "weight_hh" + suffix, (rows, self.output_size)
                if self.bias:
                    yield "bias_ih" + suffix, (rows,)
                    yield "bias_hh" + suffix, (rows,)
                if self.proj_size:
                    yield "weight_hr" + suffix, (self.proj_size, self.hidden_size)
                if self.peephole:
                    yield "weight_p" + suffix, (3, self.hidden_size)

    def slots(self):
        """Each activation with its α and β."""
        names = self.activations or OWN_ACTIVATIONS[self.cell]
        for slot, name in enumerate(names):
            known = ACTIVATIONS[name]
            alpha = self.alpha[slot] if self.alpha else None
            beta = self.beta[slot] if self.beta else None
            yield known, known.alpha if alpha is None else alpha, known.beta if beta is None else beta

    def metadata(self):
        def text(value):
            if isinstance(value, bool):
                return "true" if value else "false"
            if isinstance(value, tuple):
                return ",".join(map(text, value))
            return "" if value is None else str(value)

        drawn = ("steps", "batch", "scale", "lengths", "resets")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in drawn}
        for optional in ("alpha", "beta", "burn_in"):
            if not values[optional]:
                del values[optional]
        return {"format": "rnn-case/1"} | {name: text(value) for name, value in values.items()}

    @staticmethod
    def from_metadata(metadata, x):
        def number(text):
            return float(text) if text else None

        def listed(key, convert):
            text = metadata.get(key, "")
            return tuple(map(convert, text.split(","))) if text else ()

        sizes = ("input_size", "hidden_size", "num_layers", "proj_size")
        flags = ("bidirectional", "bias", "peephole", "coupled")
        return Config(
            cell=metadata["cell"],
            steps=x.shape[0],
            batch=x.shape[1],
            gru_reset=metadata["gru_reset"],
            clip=number(metadata["clip"]),
            cell_clip=number(metadata["cell_clip"]),
            activations=listed("activations", str),
            alpha=listed("alpha", number),
            beta=listed("beta", number),
            burn_in=int(metadata.get("burn_in", 0)),
            **{name: int(metadata[name]) for name in sizes},
            **{name: metadata[name] == "true" for name in flags},
        )


class Direction:
    """One direction of one layer: the equations of a step."""

    def __init__(self, config, weights, suffix):
        def weight(name):
            return weights.get(name + suffix)

        self.config = config
        self.w, self.r = weight("weight_ih"), weight("weight_hh")
        self.b_ih, self.b_hh = weight("bias_ih"), weight("bias_hh")
        self.projection, self.peepholes = weight("weight_hr"), weight("weight_p")
        self.slots = list(config.slots())
        self.margin = float("inf")

    def of_input(self, x):
        return functional.linear(x, self.w, self.b_ih)

    def of_state(self, h):
        return functional.linear(h, self.r, self.b_hh)

    def away_from(self, v, *kinks):
        for kink in kinks:
            distances = (v.detach() - kink).abs()
            # What is exactly at a kink, as a state after a reset, is so in any precision.
            distances = distances[distances > 0]
            if distances.numel():
                self.margin = min(self.margin, distances.min().item())

    def bounded(self, v, bound):
        if bound is None:
            return v
        self.away_from(v, -bound, bound)
        return v.clamp(-bound, bound)

    def activate(self, slot, v):
        known, alpha, beta = self.slots[slot]
        self.away_from(v, *known.kinks(alpha, beta))
        return known.of(v, alpha, beta)

    def gate(self, slot, v):
        return self.activate(slot, self.bounded(v, self.config.clip))

    def rnn(self, x, h):
        return self.gate(0, self.of_input(x) + self.of_state(h))

    def gru(self, x, h):
        r, z, n = self.of_input(x).chunk(3, dim=1)
        state_r, state_z, state_n = self.of_state(h).chunk(3, dim=1)
        r = self.gate(0, r + state_r)
        z = self.gate(0, z + state_z)
        if self.config.gru_reset == "after":
            n = self.gate(1, n + r * state_n)
        else:
            n = self.gate(1, n + self.of_state(r * h).chunk(3, dim=1)[2])
        return (1 - z) * n + z * h

    def lstm(self, x, h, c):
        i, f, g, o = (self.of_input(x) + self.of_state(h)).chunk(4, dim=1)
        p_i, p_f, p_o = (0, 0, 0) if self.peepholes is None else self.peepholes
        i = self.gate(0, i + p_i * c)
        f = 1 - i if self.config.coupled else self.gate(0, f + p_f * c)
        c = self.bounded(f * c + i * self.gate(1, g), self.config.cell_clip)
        h = self.gate(0, o + p_o * c) * self.activate(2, c)
        return h if self.projection is None else h @ self.projection.T, c

    def step(self, x, h, c):
        if self.config.lstm:
            return self.lstm(x, h, c)
        return (self.gru if self.config.cell == "gru" else self.rnn)(x, h), c


def order(config, direction):
    """The steps as a direction takes them."""
    steps = range(config.steps)
    return reversed(steps) if direction else steps


def forward(config, tensors):
    """y, hn, cn, and the least distance of a value from a kink."""
    lengths, reset = tensors.get("lengths"), tensors.get("reset")
    inputs, hn, cn, margin = tensors["x"], [], [], float("inf")
    for layer in range(config.num_layers):
        outputs = []
        for direction, suffix in enumerate(config.suffixes(layer)):
            at = layer * config.directions + direction
            h = tensors["h0"][at]
            c = tensors["c0"][at] if config.lstm else h
            cell = Direction(config, tensors, suffix)
            y = [None] * config.steps
            for t in order(config, direction):
                if reset is not None:
                    keep = (reset[t] == 0)[:, None]
                    h, c = h * keep, c * keep
                h_new, c_new = cell.step(inputs[t], h, c)
                live = torch.full_like(h[:, :1], True, dtype=torch.bool)
                if lengths is not None:
                    live = (t < lengths)[:, None]
                y[t] = h_new * live
                h, c = torch.where(live, h_new, h), torch.where(live, c_new, c)
                if t < config.burn_in:
                    y[t] = y[t].detach()
                if t + 1 == config.burn_in:
                    h, c = h.detach(), c.detach()
            outputs.append(torch.stack(y))
            hn.append(h)
            cn.append(c)
            margin = min(margin, cell.margin)
        inputs = torch.cat(outputs, dim=2)
    return inputs, torch.stack(hn), torch.stack(cn), margin


def doubles(config, tensors):
    """The tensors in double precision; those that have a gradient, by name."""
    values = {}
    for name, value in tensors.items():
        value = torch.from_numpy(value)
        values[name] = value.double() if value.is_floating_point() else value
    names = ["x", "h0"] + ["c0"] * config.lstm + [name for name, _ in config.weight_shapes()]
    for name in names:
        values[name].requires_grad_()
    return values, names


def results(config, values, names, y, hn, cn):
    """Outputs, and the gradients of Σ y·dy + Σ hn·dhn + Σ cn·dcn, by their names in a case."""
    outputs = {"y": y, "hn": hn} | ({"cn": cn} if config.lstm else {})
    loss = sum((value * values["d" + name]).sum() for name, value in outputs.items())
    inputs = [values[name] for name in names]
    # After nothing but burn-in no result depends on an input as far as gradients go.
    found = [None] * len(names)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, inputs, allow_unused=True)
    solved = {"out." + name: value.detach().numpy() for name, value in outputs.items()}
    for name, value, gradient in zip(names, inputs, found, strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        solved["grad." + name] = gradient.detach().numpy()
    return solved


def solve(config, tensors):
    values, names = doubles(config, tensors)
    *outputs, margin = forward(config, values)
    return results(config, values, names, *outputs), margin
