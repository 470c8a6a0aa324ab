#!/usr/bin/env python3
"""Times PyTorch's LSTM, GRU and RNN on the shapes of ../shapes.toml, on the CPU or with cuDNN.

infer is a forward call without gradients from a zero state; train is a forward call and the gradients
of x, the initial state and every weight for a random gradient of y. Time first, biases, no dropout.

peak_mb is the memory of a whole training or inference, layer and input included: on CUDA what the
allocator gave out at most, on the CPU how far the resident memory of the shape's own process grew
(Linux; some megabytes of it are threads and buffers of the library).
"""

from __future__ import annotations

import argparse
import sys

import torch

import common
from common import Shape

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def module(shape: Shape) -> torch.nn.Module:
    sizes = dict(num_layers=shape.layers, bidirectional=shape.bidirectional)
    match shape.cell:
        case "lstm":
            return torch.nn.LSTM(shape.input, shape.hidden, proj_size=shape.proj, **sizes)
        case "gru":
            return torch.nn.GRU(shape.input, shape.hidden, **sizes)
        case "rnn_tanh" | "rnn_relu":
            kind = shape.cell.split("_")[1]
            return torch.nn.RNN(shape.input, shape.hidden, nonlinearity=kind, **sizes)
    raise NotImplementedError(shape.cell)


def call(shape: Shape, mode: str, device: str, dtype: torch.dtype):
    """A function that runs the layer once and returns its results."""
    torch.manual_seed(1)
    layer = module(shape).to(device, dtype)
    levels = shape.layers * shape.directions

    def zeros(units: int) -> torch.Tensor:
        return torch.zeros(levels, shape.batch, units, device=device, dtype=dtype)

    def random(width: int) -> torch.Tensor:
        return torch.randn(shape.steps, shape.batch, width, device=device, dtype=dtype)

    x, h0 = random(shape.input), zeros(shape.units)
    state = (h0, zeros(shape.hidden)) if shape.cell == "lstm" else h0
    if mode == "infer":
        layer.eval()

        @torch.inference_mode()
        def run():
            return [layer(x, state)[0]]

        return run

    layer.train()
    dy = random(shape.units * shape.directions)
    variables = [x, *(state if isinstance(state, tuple) else [state])]
    for variable in variables:
        variable.requires_grad_()
    variables += layer.parameters()

    def run():
        y, _ = layer(x, state)
        return [y, *torch.autograd.grad(y, variables, dy)]

    return run


def set_tf32(on: bool) -> None:
    """Whether f32 products may be rounded to TF32, by the flags of both generations of PyTorch."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def in_flight(run, seconds: float, min_time: float) -> float:
    """Milliseconds of a call with many queued, by the device's own events."""
    count = max(3, min(1000, round(min_time / seconds)))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def measure(shape: Shape, mode: str, options) -> dict:
    torch.set_num_threads(options.threads)
    torch.backends.mkldnn.enabled = options.onednn == "on"
    on_cuda = options.device == "cuda"
    if on_cuda:
        set_tf32(options.tf32 == "on")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    memory = common.Memory()
    run = call(shape, mode, options.device, TYPES[options.dtype])

    def until_done():
        run()
        if on_cuda:
            torch.cuda.synchronize()

    measured = common.sample(until_done, options)
    if on_cuda:
        measured["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        measured["throughput_ms"] = in_flight(run, measured["median_ms"] / 1e3, options.min_time)
    else:
        measured["peak_mb"] = memory.peak_mb()
    if not all(bool(torch.isfinite(result).all()) for result in run()):
        return common.row(shape, mode, "error", "a result is not finite")
    return common.row(shape, mode, **measured)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=TYPES, default="f32")
    parser.add_argument("--threads", type=int, default=common.threads(), help="of the CPU")
    parser.add_argument(
        "--onednn",
        choices=("on", "off"),
        default="on",
        help="whether PyTorch may use oneDNN on the CPU, which packs the weights in every call",
    )
    parser.add_argument(
        "--tf32", choices=("on", "off"), default="off", help="TF32 on CUDA; PyTorch's own is on"
    )
    options = parser.parse_args()
    settings = {"min_time_s": options.min_time, "budget_s": options.budget}
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device")
        device = torch.cuda.get_device_name()
        settings |= {"tf32": options.tf32, "cuda": torch.version.cuda}
        settings["cudnn"] = torch.backends.cudnn.version()
    else:
        device = common.cpu()
        settings |= {"threads": options.threads, "onednn": options.onednn}
    report = common.Report(
        options.json,
        tool="pytorch",
        version=torch.__version__,
        device=device,
        dtype=options.dtype,
        settings=settings,
    )
    # On CUDA the allocator tells the memory of each, and starting a process takes longer than most shapes.
    place = common.here if options.device == "cuda" else common.apart
    for shape, mode in common.selected(options):
        report.add(place(measure, shape, mode, options))
    return int(any(r["status"] == "error" for r in report.results))


if __name__ == "__main__":
    sys.exit(main())
