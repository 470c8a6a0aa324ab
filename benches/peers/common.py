"""What the peers' benchmarks share: shapes, samples, results, processes. Only the standard library."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import statistics
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

SHAPES = Path(__file__).resolve().parent.parent / "shapes.toml"
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
MODES = ("infer", "train")
GROUPS = ("stream", "small", "medium", "large", "long")


@dataclass(frozen=True)
class Shape:
    """A layer and the size of its calls, as the header of shapes.toml describes them."""

    name: str
    source: str
    cell: str
    input: int
    hidden: int
    layers: int
    bidirectional: bool
    proj: int
    batch: int
    steps: int
    mode: list[str]
    group: str

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if f.name in SIZES and getattr(self, f.name) < 1]
        wrong += ["cell"] if self.cell not in GATES else []
        wrong += ["group"] if self.group not in GROUPS else []
        wrong += ["mode"] if not self.mode or set(self.mode) - set(MODES) else []
        if wrong:
            raise ValueError(f"shape '{self.name}': wrong {', '.join(wrong)}")

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def units(self) -> int:
        """Units of h in one direction."""
        return self.proj or self.hidden

    def inputs(self) -> list[int]:
        """What each layer reads."""
        return [self.input] + [self.units * self.directions] * (self.layers - 1)

    def flops(self, mode: str) -> float:
        """2·T·N·G·H·(I + P) for each direction of each layer, three times as many in training."""
        rows = 2.0 * self.steps * self.batch * GATES[self.cell] * self.hidden
        forward = sum(rows * self.directions * (i + self.units) for i in self.inputs())
        return forward * (3 if mode == "train" else 1)


SIZES = ("input", "hidden", "layers", "batch", "steps")


def load(path: Path) -> list[Shape]:
    with path.open("rb") as file:
        return [Shape(**entry) for entry in tomllib.load(file)["shape"]]


# ------------------------------------------------------------------------------------- options


def add_options(parser) -> None:
    """The options of every benchmark here, those of `wgrnn bench`."""
    add = parser.add_argument
    add("--shapes", type=Path, default=SHAPES, metavar="FILE", help="the shapes")
    add("--only", type=re.compile, metavar="REGEX", help="only shapes whose name matches")
    add("--group", choices=GROUPS, help="only shapes of this group")
    add("--mode", choices=MODES, help="only this mode")
    add("--json", type=Path, metavar="FILE", help="where to write the results")
    add("--min-time", type=float, default=1.0, metavar="S", help="sampling time of a shape")
    add("--budget", type=float, default=15.0, metavar="S", help="after which it ends in any case")
    add("--timeout", type=float, default=120.0, metavar="S", help="after which a shape is killed")


def selected(options) -> list[tuple[Shape, str]]:
    return [
        (shape, mode)
        for shape in load(options.shapes)
        if (options.only is None or options.only.search(shape.name))
        and options.group in (None, shape.group)
        for mode in shape.mode
        if options.mode in (None, mode)
    ]


# ------------------------------------------------------------------------------------- samples


def sample(run: Callable[[], object], options) -> dict:
    """Times `run`, which returns when its result is there: the fields of a result in milliseconds."""
    seconds: list[float] = []

    def once() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    start = time.perf_counter()
    cold = once()
    while time.perf_counter() - start < cold + 0.2 * min(options.min_time, options.budget):
        once()
    sampling = time.perf_counter()
    while True:
        seconds.append(once())
        now = time.perf_counter()
        if now - start >= options.budget or len(seconds) == 20_000:
            break
        if now - sampling >= options.min_time and len(seconds) >= 5:
            break
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "min_ms": min(seconds) * 1e3,
        "samples": len(seconds),
        "cold_ms": cold * 1e3,
    }


# ------------------------------------------------------------------------------------- results

TIMES = ("median_ms", "min_ms", "gflops", "us_per_step")


def row(shape: Shape, mode: str, status: str = "ok", note: str = "", **measured) -> dict:
    """A result; rates follow from the median, and without one the times are null."""
    median = measured.get("median_ms")
    if median is not None:
        measured["gflops"] = shape.flops(mode) / (median * 1e6)
        measured["us_per_step"] = median * 1e3 / shape.steps
    times = {name: measured.get(name) for name in TIMES}
    result = {"name": shape.name, "mode": mode, **times, **measured, "status": status, "note": note}
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in result.items()}


def show(result: dict) -> None:
    head = f"{result['name']:<22} {result['mode']:<5}"
    if result["status"] == "ok":
        head += f" {result['median_ms']:>11.3f} ms, least {result['min_ms']:>11.3f}"
        head += f"  {result['us_per_step']:>10.2f} us/step  {result['gflops']:>9.2f} GFLOP/s"
    else:
        head += f" {result['status']}"
    print(head + (f"  ({result['note']})" if result["note"] else ""), flush=True)


class Report:
    """The results so far; the file is replaced as a whole after each."""

    def __init__(self, path: Path | None, **head) -> None:
        self.path, self.head, self.results = path, head, []
        print(", ".join(str(v) for v in head.values() if not isinstance(v, dict)), flush=True)

    def add(self, result: dict) -> None:
        show(result)
        self.results.append(result)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(self.path.name + ".tmp")
            beside.write_text(json.dumps({**self.head, "results": self.results}, indent=1) + "\n")
            os.replace(beside, self.path)


# ----------------------------------------------------------------------------------- processes


def apart(measure: Callable, shape: Shape, mode: str, options) -> dict:
    """`measure(shape, mode, options)` in a process of its own, so that memory is counted from the
    start and neither a crash nor a hang takes the other shapes along."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_send, args=(sender, measure, shape, mode, options), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(options.timeout):
            return row(shape, mode, "timeout", f"ended after {options.timeout:g} s")
        return receiver.recv()
    except EOFError:
        child.join()
        return row(shape, mode, "error", f"its process ended with status {child.exitcode}")
    finally:
        child.kill()
        child.join()


def here(measure: Callable, shape: Shape, mode: str, options) -> dict:
    """`measure(shape, mode, options)`, or what kept it from a result as the row of its shape."""
    try:
        return measure(shape, mode, options)
    except NotImplementedError as e:
        return row(shape, mode, "unsupported", str(e))
    except Exception as e:  # whatever a library throws is the result of its shape
        line = " ".join(str(e).split()) or type(e).__name__
        return row(shape, mode, "error", line[:300])


def _send(sender, measure: Callable, shape: Shape, mode: str, options) -> None:
    sender.send(here(measure, shape, mode, options))


class Memory:
    """How much memory a process took beyond what it had at the beginning, at its peak (Linux)."""

    def __init__(self) -> None:
        self.exact = True
        try:
            # Forget the peak so far, that of loading the library.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.exact = False
        self.before = _kilobytes("VmRSS")

    def peak_mb(self) -> float | None:
        peak = _kilobytes("VmHWM")
        if not self.exact or peak is None or self.before is None:
            return None
        return (peak - self.before) * 1024 / 1e6


def _kilobytes(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) if found else None


def cpu() -> str:
    """The processor and how many of its threads this process may use."""
    name = "CPU"
    if (info := Path("/proc/cpuinfo")).exists() and (
        found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)
    ):
        name = found[1]
    return f"{name}, {threads()} threads"


def threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
