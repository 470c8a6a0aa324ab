#!/usr/bin/env python3
"""Times Burn's LSTM, GRU and RNN on its wgpu backend on the shapes of ../shapes.toml.

The layers are those of the Cargo project in burn/, which is built on the first use and runs once for
each shape. Burn computes lazily: a time ends when the sum of y (infer) or of the gradient of x (train)
was read and the device is done, with all other gradients held. Batch first, which is Burn's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import common
from common import Shape

PROJECT = Path(__file__).resolve().parent / "burn"
#: A faster software adapter did not do all the work.
SOFTWARE_GFLOPS = 500


def cargo(verb: str, options) -> list[str]:
    features = ["--features", "vulkan"] if options.vulkan else []
    manifest = ["--manifest-path", str(PROJECT / "Cargo.toml")]
    return ["cargo", verb, "--release", "--locked", "--quiet", *manifest, *features]


def measure(shape: Shape, mode: str, options) -> tuple[dict, str | None]:
    """The result and the device's name."""
    if shape.proj:
        return common.row(shape, mode, "unsupported", "Burn's LSTM has no projection"), None
    command = [*cargo("run", options), "--", f"--cell={shape.cell}", f"--device={options.device}"]
    for name in common.SIZES:
        command.append(f"--{name}={getattr(shape, name)}")
    command += [f"--min-time={options.min_time}", f"--budget={options.budget}"]
    command += ["--bidirectional"] * shape.bidirectional + ["--train"] * (mode == "train")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        out, errors = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return common.row(shape, mode, "timeout", f"ended after {options.timeout:g} s"), None
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["without a word"])[-1]
        note = f"status {process.returncode}: {last[:300]}"
        return common.row(shape, mode, "error", note), None
    measured = json.loads(out.splitlines()[-1])
    device = measured.pop("device")
    result = common.row(shape, mode, **measured)
    software = re.search("llvmpipe|swiftshader", device or "", re.I)
    if software and result["gflops"] > SOFTWARE_GFLOPS:
        note = f"{result['gflops']:.0f} GFLOP/s on a software adapter: work was left out"
        result = common.row(shape, mode, "error", note)
    return result, device


def version() -> str:
    manifest = (PROJECT / "Cargo.toml").read_text()
    return re.search(r'^burn = \{ version = "=([^"]+)"', manifest, re.M)[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_options(parser)
    kinds = ("default", "cpu", "discrete", "integrated")
    parser.add_argument("--device", choices=kinds, default="default", help="cpu: a software adapter")
    parser.add_argument(
        "--vulkan", action="store_true", help="SPIR-V instead of WGSL; not for software adapters"
    )
    options = parser.parse_args()
    subprocess.run(cargo("build", options), check=True)
    report = common.Report(
        options.json,
        tool="burn-wgpu",
        version=version(),
        device=f"{options.device} adapter",
        dtype="f32",
        settings={
            "shaders": "SPIR-V" if options.vulkan else "WGSL",
            "min_time_s": options.min_time,
            "budget_s": options.budget,
            "timeout_s": options.timeout,
        },
    )
    for shape, mode in common.selected(options):
        result, device = measure(shape, mode, options)
        if device is not None:
            report.head["device"] = device
        report.add(result)
    return int(any(r["status"] == "error" for r in report.results))


if __name__ == "__main__":
    sys.exit(main())
