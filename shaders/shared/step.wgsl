// What the step kernels of all cells have in common: their parameters, and the four
// sequences that one invocation serves so that a weight is loaded once for all four.
// Where fewer are left, the last one is computed again and not stored.
//
// A workgroup owns 64 hidden units of four sequences; an invocation owns one unit
// with all its gates. Nothing is shared within the workgroup.

const WORKGROUP: u32 = 64u;
const ROWS: u32 = 4u;

struct Step {
    batch: u32,
    hidden: u32,
    // Where step t starts in `gates` and `dgates`, and from one sequence to the next.
    gates_start: u32,
    gates_row: u32,
    // Where step t + 1 starts in `dgates`, if there is one.
    next_start: u32,
    has_next: u32,
    // The states before and after step t.
    h_from: u32,
    h_to: u32,
    c_from: u32,
    c_to: u32,
    // Where step t starts in `dy`, and from one sequence to the next.
    dy_start: u32,
    dy_row: u32,
}

@group(0) @binding(0) var<uniform> step: Step;

// The four sequences from `first` on.
fn four_rows(first: u32) -> vec4u {
    return min(vec4u(first, first + 1u, first + 2u, first + 3u), vec4u(step.batch - 1u));
}
