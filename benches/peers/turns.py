#!/usr/bin/env python3
"""Runs several benchmarks shape by shape in turns, so that what the machine does meanwhile meets them all.

    turns.py --out DIR NAME=COMMAND [NAME=COMMAND ...]

Each command is one of this folder's scripts or `wgrnn bench`, with its options; it is run for one shape and one
mode at a time, and DIR/NAME.json collects its results. What a tool does not support is in its file as such.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import common

# `wgrnn bench` ends so where a result was wrong or something is not supported; its file says which.
WROTE_RESULTS = (0, 1, 3)


def tool(text: str) -> tuple[str, list[str]]:
    name, equals, command = text.partition("=")
    if not name or not equals or not command:
        raise argparse.ArgumentTypeError(f"expected NAME=COMMAND, got '{text}'")
    return name, shlex.split(command)


def run(command: list[str], shape: str, mode: str, shapes: Path) -> dict:
    """The file that a tool writes for one shape in one mode."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        options = ["--shapes", str(shapes), "--only", f"^{re.escape(shape)}$", "--mode", mode, "--json", str(file)]
        done = subprocess.run(command + options, stdout=subprocess.DEVNULL, check=False)
        if done.returncode not in WROTE_RESULTS or not file.exists():
            sys.exit(f"'{shlex.join(command)}' ended with {done.returncode} at {shape}, {mode}")
        return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--shapes", type=Path, default=common.SHAPES, metavar="FILE", help="the shapes")
    add("--only", type=re.compile, metavar="REGEX", help="only shapes whose name matches")
    add("--group", choices=common.GROUPS, help="only shapes of this group")
    add("--mode", choices=common.MODES, help="only this mode")
    add("tools", nargs="+", type=tool, metavar="NAME=COMMAND")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    collected: dict[str, dict] = {}
    for shape, mode in common.selected(args):
        for name, command in args.tools:
            new = run(command, shape.name, mode, args.shapes)
            file = collected.setdefault(name, {**new, "results": []})
            file["results"] += new["results"]
            # After every result, so that an interruption loses none.
            (args.out / f"{name}.json").write_text(json.dumps(file, indent=1) + "\n")
            for result in new["results"]:
                print(f"{name:<16} ", end="")
                common.show(result)


if __name__ == "__main__":
    main()
