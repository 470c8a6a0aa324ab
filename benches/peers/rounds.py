#!/usr/bin/env python3
"""Runs several benchmarks in turns, several rounds of all shapes, and keeps of each tool and shape the round with the
least median, since a machine's clock and its other work make a time longer, never shorter.

    rounds.py --out DIR [--rounds 3] [options of turns.py] OURS=COMMAND PEER=COMMAND [PEER=COMMAND ...]

DIR/NAME.json has what was kept. At the end our time stands beside that of the fastest peer, with the ratio of theirs to
ours, the geometric mean of the ratios, and the rows below 1.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import geometric_mean

import common
import turns

Rows = dict[tuple[str, str], dict]


def faster(new: dict, old: dict | None) -> bool:
    if old is None or old["median_ms"] is None:
        return True
    return new["median_ms"] is not None and new["median_ms"] < old["median_ms"]


def side_by_side(names: list[str], kept: dict[str, Rows]) -> None:
    ours, *peers = names
    ratios = {}
    for key, row in kept[ours].items():
        theirs = [(kept[peer][key]["median_ms"], peer) for peer in peers if key in kept[peer]]
        theirs = [(time, peer) for time, peer in theirs if time is not None]
        if row["median_ms"] is None or not theirs:
            continue
        time, peer = min(theirs)
        ratios[key] = time / row["median_ms"]
        shape = " ".join(key)
        print(f"{shape:<32} {row['median_ms']:>11.3f} ms, {peer} {time:>11.3f}, ratio {ratios[key]:.2f}")
    if not ratios:
        return
    print(f"geometric mean of {len(ratios)}: {geometric_mean(ratios.values()):.2f}")
    behind = [f"{' '.join(key)} {ratio:.2f}" for key, ratio in ratios.items() if ratio < 1]
    print(f"below 1: {', '.join(behind) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--rounds", type=int, default=3, help="how often each shape is run by each tool")
    add("--shapes", type=Path, default=common.SHAPES, metavar="FILE", help="the shapes")
    add("--only", type=re.compile, metavar="REGEX", help="only shapes whose name matches")
    add("--group", choices=common.GROUPS, help="only shapes of this group")
    add("--mode", choices=common.MODES, help="only this mode")
    add("tools", nargs="+", type=turns.tool, metavar="NAME=COMMAND")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    heads: dict[str, dict] = {}
    kept: dict[str, Rows] = {name: {} for name, _ in args.tools}
    for number in range(1, args.rounds + 1):
        for shape, mode in common.selected(args):
            for name, command in args.tools:
                head = turns.run(command, shape.name, mode, args.shapes)
                for row in head.pop("results"):
                    print(f"{number} {name:<16} ", end="")
                    common.show(row)
                    key = row["name"], row["mode"]
                    if faster(row, kept[name].get(key)):
                        kept[name][key] = row
                heads.setdefault(name, head)
                file = heads[name] | {"results": list(kept[name].values())}
                (args.out / f"{name}.json").write_text(json.dumps(file, indent=1) + "\n")
    side_by_side([name for name, _ in args.tools], kept)


if __name__ == "__main__":
    main()
