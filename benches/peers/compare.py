#!/usr/bin/env python3
"""Puts results side by side: the first file is ours, the others are peers'.

    compare.py ours.json pytorch.json onnxruntime.json --labels wgrnn torch ort --chart ratios.svg

A ratio is the peer's time over ours: above 1 we are faster. A row that ran on another device than was
asked for has a * and no ratio. With --memory the same for the memory of a plan and a peer's peak.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import geometric_mean

import common

Key = tuple[str, str]


class Results:
    """One file, by name and mode."""

    def __init__(self, path: Path, label: str | None) -> None:
        file = json.loads(path.read_text())
        self.label = label or file["tool"]
        self.about = ", ".join(str(file[key]) for key in ("tool", "version", "device", "dtype"))
        self.rows: dict[Key, dict] = {(r["name"], r["mode"]): r for r in file["results"]}

    def value(self, key: Key, *names: str) -> float | None:
        """The first of these fields that a row has."""
        row = self.rows.get(key, {})
        return next((row[name] for name in names if row.get(name) is not None), None)

    def elsewhere(self, key: Key) -> bool:
        return self.rows.get(key, {}).get("ran_on_requested_provider") is False

    def text(self, key: Key, names: tuple[str, ...]) -> str:
        if key not in self.rows:
            return ""
        value = self.value(key, *names)
        if value is None:
            status = self.rows[key]["status"]
            return "-" if status == "ok" else status
        return f"{value:.3f}" + ("*" if self.elsewhere(key) else "")


def ratios(ours: Results, peer: Results, keys: list[Key], names: tuple[str, ...]) -> dict:
    """The peer's value over ours for each key that both have, if it may be compared."""
    found = {}
    for key in keys:
        mine, its = ours.value(key, *names), peer.value(key, *names)
        if mine and its and not peer.elsewhere(key) and not ours.elsewhere(key):
            found[key] = its / mine
    return found


def table(head: list[str], rows: list[list[str]]) -> None:
    """As Markdown; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]

    def line(cells: list[str], fill: str = " ") -> str:
        first, *others = zip(cells, widths)
        padded = [first[0].ljust(first[1], fill)]
        padded += [cell.rjust(width, fill) for cell, width in others]
        return "| " + " | ".join(padded) + " |"

    rule = ["-"] + ["-:"] * (len(head) - 1)
    print("\n".join([line(head), line(rule, "-"), *map(line, rows)]), end="\n\n")


def side_by_side(all_results: list[Results], keys: list[Key], names: tuple, unit: str) -> list:
    """Prints the table of values and ratios; the ratios of each peer."""
    ours, *peers = all_results
    all_ratios = [ratios(ours, peer, keys, names) for peer in peers]
    head = ["shape", f"{ours.label} {unit}"]
    for peer in peers:
        head += [f"{peer.label} {unit}", "ratio"]
    rows = []
    for key in keys:
        row = [f"{key[0]} {key[1]}", ours.text(key, names)]
        for peer, found in zip(peers, all_ratios):
            row += [peer.text(key, names), f"{found[key]:.2f}" if key in found else ""]
        rows.append(row)
    table(head, rows)
    return all_ratios


def means(peers: list[Results], all_ratios: list[dict], groups: dict[str, str]) -> None:
    rows = []
    for group in (*common.GROUPS, "all"):
        cells = []
        for found in all_ratios:
            of = [r for (name, _), r in found.items() if group in ("all", groups.get(name))]
            cells.append(f"{geometric_mean(of):.2f} ({len(of)})" if of else "")
        if any(cells):
            rows.append([group, *cells])
    if not rows:
        return
    print("Geometric means of the ratios, and of how many:\n")
    table(["group", *(peer.label for peer in peers)], rows)


def draw(path: Path, ours: Results, peers: list[Results], all_ratios: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = list(dict.fromkeys(key for found in all_ratios for key in found))
    size = (8, 1 + len(keys) * (0.12 + 0.13 * len(peers)))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    for i, (peer, found) in enumerate(zip(peers, all_ratios)):
        shift = (i - (len(peers) - 1) / 2) * 0.8 / len(peers)
        mine = [(y + shift, found[key]) for y, key in enumerate(keys) if key in found]
        if mine:
            places, values = zip(*mine)
            # From the line of equal times to either side.
            beyond = [value - 1 for value in values]
            axes.barh(places, beyond, 0.8 / len(peers), left=1, label=peer.label)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(keys)), [f"{name} {mode}" for name, mode in keys], fontsize=8)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel(f"the peer's time / that of {ours.label} (to the right {ours.label} is faster)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path)
    parser.add_argument("peers", type=Path, nargs="+")
    parser.add_argument("--labels", nargs="+", help="a name for each file")
    parser.add_argument("--shapes", type=Path, default=common.SHAPES, help="their order and groups")
    parser.add_argument("--least", action="store_true", help="compare the least times")
    parser.add_argument("--group", choices=common.GROUPS)
    parser.add_argument("--mode", choices=common.MODES)
    parser.add_argument("--memory", action="store_true", help="compare memory as well")
    parser.add_argument("--chart", type=Path, metavar="FILE", help=".svg or .png, by matplotlib")
    options = parser.parse_args()
    paths = [options.ours, *options.peers]
    if options.labels and len(options.labels) != len(paths):
        parser.error(f"--labels: {len(paths)} files need as many names")
    labels = options.labels or [None] * len(paths)
    results = [Results(path, label) for path, label in zip(paths, labels)]
    groups = {shape.name: shape.group for shape in common.load(options.shapes)}

    def wanted(key: Key) -> bool:
        name, mode = key
        return options.group in (None, groups.get(name)) and options.mode in (None, mode)

    order = list(groups)
    there = {key for result in results for key in result.rows if wanted(key)}
    place = {name: i for i, name in enumerate(order)}
    keys = sorted(there, key=lambda key: (place.get(key[0], len(order)), key))

    for result in results:
        print(f"{result.label}: {result.about}")
    print()
    time = "min_ms" if options.least else "median_ms"
    found = side_by_side(results, keys, (time,), "ms")
    if any(result.elsewhere(key) for result in results for key in keys):
        print("* ran on another device than was asked for\n")
    means(results[1:], found, groups)
    if options.memory:
        print("Memory, of a plan and at its peak:\n")
        means(results[1:], side_by_side(results, keys, ("plan_mb", "peak_mb"), "MB"), groups)
    if options.chart:
        if not any(found):
            sys.exit("no chart: nothing can be compared")
        try:
            draw(options.chart, results[0], results[1:], found)
        except ModuleNotFoundError:
            sys.exit("no chart: matplotlib is not installed")


if __name__ == "__main__":
    main()
