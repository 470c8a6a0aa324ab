#!/usr/bin/env python3
"""Deliberate bugs that the tests have to find: each is put into the source, tests run, and it is taken out again.

    tools/mutations.py                 every bug, under the tests that `cargo test` runs
    tools/mutations.py --all           under WGRNN_TESTS=all
    tools/mutations.py --list
    tools/mutations.py lstm-gates ...  these alone

A bug's test programs run one after another until one fails. A bug that no program finds is listed at the end, and the
exit status is 1. A bug whose text is not found once in its file is an error: the table has to follow the source.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str
    new: str
    # Test programs, the one that is likeliest to fail first; `lib` is the tests beside the source.
    tests: tuple


BUGS = [
    # Cells in WGSL.
    Bug("lstm-gates", "shaders/lstm.wgsl",
        "let pre_i = pre.x + peephole(0u, j, c_old);",
        "let pre_i = pre.y + peephole(0u, j, c_old);",
        ("cases", "kernels")),
    Bug("lstm-peephole-of-old-c", "shaders/lstm.wgsl",
        "let pre_o = pre.w + peephole(2u, j, c_new);",
        "let pre_o = pre.w + peephole(2u, j, c_old);",
        ("cases", "kernels")),
    Bug("lstm-peephole-gradient", "shaders/lstm.wgsl",
        "d_i * peephole_weight(0u, j) + d_f * peephole_weight(1u, j);",
        "d_i * peephole_weight(0u, j);",
        ("cases", "kernels")),
    Bug("lstm-coupled-gradient", "shaders/lstm.wgsl",
        "d_i -= dc * c_old;",
        "d_i += dc * c_old;",
        ("cases", "kernels")),
    Bug("lstm-cell-clip", "shaders/lstm.wgsl",
        "dc = select(dc, 0.0, abs(c_new) >= step.cell_clip.x);",
        "dc = select(dc, 0.0, abs(c_new) > step.cell_clip.x);",
        ("cases", "kernels")),
    Bug("clip-slope", "shaders/shared/gates.wgsl",
        "return select(inside, 0.0, abs(kept) > step.clip.x);",
        "return inside;",
        ("cases", "kernels")),
    Bug("elu-alpha", "shaders/shared/gates.wgsl",
        "case 6u: { return select(1.0, p.x * exp(x), x <= 0.0); }",
        "case 6u: { return select(1.0, exp(x), x <= 0.0); }",
        ("cases", "kernels")),
    Bug("gru-update", "shaders/gru.wgsl",
        "store_state(row, j, (1.0 - z) * n + z * own);",
        "store_state(row, j, z * n + (1.0 - z) * own);",
        ("cases", "kernels")),
    Bug("gru-before-gradient", "shaders/gru_before.wgsl",
        "dstate[unit] = dstate[unit] * z + dinner * r;",
        "dstate[unit] = dstate[unit] * z;",
        ("cases", "kernels")),
    Bug("projection-stride", "shaders/project.wgsl",
        "sum += m * weight_hr_t[k * step.output + j];",
        "sum += m * weight_hr_t[k * step.hidden + j];",
        ("cases", "kernels")),
    # Masks, states and streams in WGSL.
    Bug("mask-of-output", "shaders/shared/step.wgsl",
        "= select(0.0, value, live(n));",
        "= value;",
        ("cases", "options", "kernels")),
    Bug("reset-stops-no-gradient", "shaders/shared/step.wgsl",
        "    if reset_next(n) {\n        dh = 0.0;\n    }",
        "",
        ("cases", "options", "kernels")),
    Bug("sequence-past-the-next-step", "shaders/shared/step.wgsl",
        "return select(vec4f(), product, n < vec4u(step.next_count));",
        "return select(vec4f(), product, n <= vec4u(step.next_count));",
        ("kernels", "options", "property")),
    Bug("length-off-by-one", "shaders/mask.wgsl",
        "select(0u, 1u, t >= lengths[n])",
        "select(0u, 1u, t > lengths[n])",
        ("cases", "kernels")),
    Bug("stream-half", "shaders/shared/step.wgsl",
        "return ((1u - (stream & 1u)) * step.streams + (stream >> 1u)) * step.output;",
        "return ((stream & 1u) * step.streams + (stream >> 1u)) * step.output;",
        ("streams", "kernels")),
    Bug("sequence-barrier", "shaders/shared/sequence.wgsl",
        "        held = rows;\n        workgroupBarrier();",
        "        held = rows;",
        ("kernels", "cases", "options", "precision")),
    Bug("few-barrier", "shaders/shared/few.wgsl",
        "    parts[{r}u * THREADS + local] = sum{r};\n#end\n    workgroupBarrier();",
        "    parts[{r}u * THREADS + local] = sum{r};\n#end",
        ("kernels", "property", "precision", "levels")),
    # Products in WGSL.
    Bug("blocks-edge-of-k", "shaders/gemm/blocks.wgsl",
        "for (; k < end; k++) {",
        "for (; k + 1u < end; k++) {",
        ("kernels", "products", "cases")),
    Bug("rows-edge-of-k", "shaders/gemm/rows.wgsl",
        "for (; k < end; k += 8u) {",
        "for (; k + 8u < end; k += 8u) {",
        ("kernels", "products")),
    Bug("tile-barrier", "shaders/gemm/tile.wgsl",
        "#end\n        workgroupBarrier();\n        if k + DEPTH < end {",
        "#end\n        if k + DEPTH < end {",
        ("kernels", "products")),
    Bug("row-of-a-tile-edge", "shaders/shared/gemm.wgsl",
        "a_buffer[a_place(min(row + 3u, last), k)],",
        "a_buffer[a_place(min(row + 2u, last), k)],",
        ("kernels", "products")),
    Bug("sum-of-parts", "shaders/gemm/sum.wgsl",
        "for (var part = 0u; part < product.k; part++) {",
        "for (var part = 1u; part < product.k; part++) {",
        ("kernels", "products")),
    Bug("bias-of-rows", "shaders/shared/gemm.wgsl",
        "case 2u: { return value + bias[row]; }",
        "case 2u: { return value; }",
        ("kernels", "products")),
    # What trains, in WGSL.
    Bug("adam-bias-correction", "shaders/adam.wgsl",
        "rate[0] * (mean / c1) /",
        "rate[0] * mean /",
        ("training_kernels", "kernels")),
    Bug("dropout-scale", "shaders/dropout.wgsl",
        "values[at] / params.keep",
        "values[at] * params.keep",
        ("training_kernels", "kernels", "options")),
    Bug("scatter-overwrites", "shaders/embedding.wgsl",
        "sums[sum] += doutput",
        "sums[sum] = doutput",
        ("training_kernels", "kernels")),
    Bug("cross-entropy-mean", "shaders/cross_entropy.wgsl",
        "logits[start + j] = (p - select(0.0, 1.0, j == label)) / n;",
        "logits[start + j] = p - select(0.0, 1.0, j == label);",
        ("training_kernels", "kernels")),
    Bug("half-ties", "shaders/pack.wgsl",
        "0x38000000u + 0xfffu + ((bits >> 13u) & 1u)",
        "0x38000000u + 0x1000u",
        ("precision", "kernels")),
    Bug("transposed-tile-edge", "shaders/transpose.wgsl",
        "if tr < params.cols && tc < params.rows {",
        "if tr < params.rows && tc < params.cols {",
        ("kernels",)),
    # Plans, the same for both backends.
    Bug("accumulated-biases", "src/plan/sequence/backward.rs",
        "beta: if run.call().accumulate { 1.0 } else { 0.0 },",
        "beta: 0.0,",
        ("options", "property")),
    Bug("accumulated-weights", "src/plan/sequence/backward.rs",
        "let beta = if first && !run.call().accumulate {",
        "let beta = if first {",
        ("options", "property")),
    Bug("second-direction-overwrites", "src/plan/sequence/backward.rs",
        "beta: if nth == 0 && !level.reverse { 0.0 } else { 1.0 },",
        "beta: if nth == 0 { 0.0 } else { 1.0 },",
        ("cases", "property")),
    Bug("gradient-of-another-level", "src/plan/sequence/backward.rs",
        "copy(b, (from, number * len), to, len)?;",
        "copy(b, (from, 0), to, len)?;",
        ("cases", "property")),
    Bug("states-of-the-wrong-step", "src/plan/sequence/backward.rs",
        "row_range(batch..batch + most)",
        "row_range(0..most)",
        ("cases", "property")),
    Bug("reset-before-the-first-step", "src/plan/sequence/backward.rs",
        "if run.call().resets {",
        "if false && run.call().resets {",
        ("cases", "property")),
    Bug("wrong-lag", "src/plan/sequence/stack.rs",
        "let steps = run.chunk(nth - layer)?;",
        "let steps = run.chunk(nth)?;",
        ("levels", "cases")),
    Bug("one-mask-for-all-layers", "src/plan/sequence/forward.rs",
        "stream: DROPOUT_STREAM + layer as u32,",
        "stream: DROPOUT_STREAM,",
        ("options",)),
    Bug("burn-in-is-trained", "src/plan/sequence/run.rs",
        "runs.push((0..burn_in, false));",
        "runs.push((0..burn_in, true));",
        ("cases", "options")),
    Bug("scratch-reused-too-early", "src/plan/memory.rs",
        "free_after[s] < first",
        "free_after[s] <= first",
        ("lib", "cases")),
    Bug("packed-order", "src/layer/packing.rs",
        "order.sort_by_key(|&n| std::cmp::Reverse(lengths[n]));",
        "order.sort_by_key(|&n| lengths[n]);",
        ("lib", "cases", "options")),
    Bug("tile-rest", "src/kernels/gemm/push.rs",
        'constants.push(("REST", u32::from(!shape.k.is_multiple_of(4))));',
        'constants.push(("REST", u32::from(shape.k == 0)));',
        ("kernels", "products")),
    # The CPU's kernels for all steps.
    Bug("cpu-reset", "src/kernels/simd/backward.rs",
        "let through = match from.zeroed {",
        "let through = match false && from.zeroed {",
        ("cases", "options", "lib")),
    Bug("cpu-output-gradient", "src/kernels/simd/backward.rs",
        "simd.add_f32s(through, units.of(simd, self.dy, from.dy))",
        "through",
        ("cases", "options", "lib")),
    Bug("cpu-few-beta", "src/kernels/gemm/library.rs",
        "beta: beta.to_f32(),",
        "beta: 0.0 * beta.to_f32(),",
        ("products", "property", "cases", "lib")),
]


def cargo(*args, thorough):
    env = dict(os.environ)
    env.pop("WGRNN_TESTS", None)
    if thorough:
        env["WGRNN_TESTS"] = "all"
    run = subprocess.run(["cargo", "test", "--locked", *args], cwd=ROOT, env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run.returncode, run.stdout


def found_by(bug, thorough):
    """The program and the first test that fail, or None."""
    for program in bug.tests:
        chosen = ["--lib"] if program == "lib" else ["--test", program]
        code, output = cargo(*chosen, "--no-run", thorough=thorough)
        if code != 0:
            raise SystemExit(f"{bug.name} does not build:\n{output}")
        code, output = cargo(*chosen, thorough=thorough)
        if code != 0:
            failed = [line.split()[1] for line in output.splitlines()
                      if line.startswith("test ") and line.endswith("FAILED")]
            return f"{program}: {', '.join(failed) or 'it does not end well'}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="under WGRNN_TESTS=all")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    known = {bug.name: bug for bug in BUGS}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        raise SystemExit(f"no such bug: {', '.join(unknown)}")
    bugs = [known[name] for name in args.names] or BUGS
    for bug in bugs:
        times = (ROOT / bug.file).read_text().count(bug.old)
        if times != 1:
            raise SystemExit(f"{bug.name}: its text stands {times} times in {bug.file}")
    if args.list:
        for bug in bugs:
            print(f"{bug.name:30} {bug.file}")
        return 0
    left = []
    for bug in bugs:
        path = ROOT / bug.file
        whole = path.read_text()
        try:
            path.write_text(whole.replace(bug.old, bug.new))
            found = found_by(bug, args.all)
        finally:
            path.write_text(whole)
        print(f"{bug.name:30} {found or 'NOT FOUND'}", flush=True)
        if found is None:
            left.append(bug.name)
    if left:
        print(f"not found: {', '.join(left)}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
