// One step of a plain recurrent network:
//   h' = a(W_ih x + b_ih + W_hh h + b_hh)
//
// Reads the previous h of its sequences and the weights of its unit; writes h', y and, with
// SAVE, what the backward pass needs of the one gate.
#import step
#import half
#import gates

// [rows, 1, H], on entry W_ih x + b_ih; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<Gate>;
// [H, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// What a unit needs of storage that no invocation writes before the step is done: W_ih x + b_ih.
alias Input = f32;
// What it keeps for itself from step to step: nothing.
alias Own = f32;
var<private> own_after: Own;

// For streams the input is in the product.
fn input_of(n: u32, j: u32) -> Input {
    if STREAM != 0u {
        return 0.0;
    }
    return f32(gates[step.gates_start + n * step.gates_row + j]);
}

// What the sum of a unit begins with: b_hh, at each place of a quad.
fn bias_of(j: u32) -> vec4f {
    return vec4f(bias_hh[bias_start() + j]);
}

fn own_of(n: u32, j: u32) -> Own {
    return 0.0;
}

// Takes the sum of a unit of a sequence that has this step, bias included and among those of its quad,
// through the gate.
fn finish_forward(n: u32, j: u32, input: Input, own: Own, product: vec4f) {
    if !live(n) {
        hold_state(n, j);
        return;
    }
    let pre = input + product[j % 4u];
    let value = gate(ACTIVATION_0, p0(), pre);
    store_state(n, j, value);
    if SAVE != 0u {
        gates[step.gates_start + n * step.gates_row + j] = Gate(kept(pre, value));
    }
}

fn store_forward(n: u32, j: u32, product: vec4f) {
    if n < row_count() {
        finish_forward(n, j, input_of(n, j), own_of(n, j), product + bias_of(j));
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= hidden || n >= row_count() {
        return;
    }
    var input = vec4f();
    if STREAM != 0u {
        let x = four_inputs(n);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(f32(gates[x.x + k]), f32(gates[x.y + k]), f32(gates[x.z + k]), f32(gates[x.w + k]));
            input += v * weight_hh_t[k * hidden + j];
        }
        input += weight_hh_t[step.input * hidden + j];
    }
    let row = four_h(n);
    let weights = recurrent_start(1u) + j;
    var a = input;
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        a += x * weight_hh_t[weights + k * hidden];
    }
    store_forward(n, j, vec4f(a.x));
    store_forward(n + 1u, j, vec4f(a.y));
    store_forward(n + 2u, j, vec4f(a.z));
    store_forward(n + 3u, j, vec4f(a.w));
}

// One step of back-propagation through time:
//   dh = dstate + dy[t] + da[t + 1] W_hh
//   da = dh a'
//   dstate = 0, since all of dh flows through the gate
// It reads the gradients of step t + 1 of its sequences and writes that of step t for its
// unit.

// [rows, 1, H]
@group(0) @binding(2) var<storage, read> saved_gates: array<Gate>;
// [H, H]: W_hh as PyTorch has it
@group(0) @binding(3) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// [rows, 1, H]
@group(0) @binding(5) var<storage, read_write> dgates: array<f32>;
// [N, H]
@group(0) @binding(6) var<storage, read_write> dstate: array<f32>;

// What a unit needs of storage that is not written: what was kept of the gate, the gradient of the output.
struct Saved {
    gate: f32,
    dy: f32,
}
// What it keeps for itself from step to step: the gradient of h past the gate.
alias OwnBack = f32;
var<private> own_after_back: OwnBack;
// The gradient that was found last, as the first of the gates'.
var<private> handed_back: vec4f;

fn saved_of(n: u32, j: u32) -> Saved {
    let gate = f32(saved_gates[step.gates_start + n * step.gates_row + j]);
    return Saved(gate, output_gradient(n, j));
}

fn own_back_of(n: u32, j: u32) -> OwnBack {
    return past_gates(n, j);
}

// Takes the product of a unit of a sequence that has this step through the gate.
fn finish_backward(n: u32, j: u32, saved: Saved, own: OwnBack, product: f32) {
    let dh = sum_gradients(n, own, saved.dy, product);
    let unit = dstate_start() + n * step.hidden + j;
    let to = step.dgates_start + n * step.dgates_row + j;
    if !live(n) {
        dgates[to] = 0.0;
        handed_back = vec4f();
        own_after_back = dh;
        dstate[unit] = dh;
        return;
    }
    let value = gate_value(ACTIVATION_0, p0(), saved.gate);
    let da = dh * gate_slope(ACTIVATION_0, p0(), saved.gate, value);
    handed_back = vec4f(da, 0.0, 0.0, 0.0);
    dgates[to] = da;
    own_after_back = 0.0;
    dstate[unit] = 0.0;
}

fn store_backward(n: u32, j: u32, product: f32) {
    if n < step.count {
        finish_backward(n, j, saved_of(n, j), own_back_of(n, j), product);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= hidden {
        return;
    }
    var dh = vec4f();
    if step.next_count > 0u {
        let row = four_next(n);
        for (var k = 0u; k < hidden; k++) {
            let d = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
            dh += d * weight_hh[k * hidden + j];
        }
        dh = with_next(n, dh);
    }
    store_backward(n, j, dh.x);
    store_backward(n + 1u, j, dh.y);
    store_backward(n + 2u, j, dh.z);
    store_backward(n + 3u, j, dh.w);
}

// What the forms over quads and the kernels of all steps ask of a cell: a quad is four units.

@group(0) @binding(3) var<storage, read> weight_quads: array<FourWeights>;
@group(0) @binding(3) var<storage, read> weight_quads_back: array<FourWeights>;
@group(0) @binding(3) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(3) var<storage, read> weight_blocks_back: array<Weight>;

const GATES: u32 = 1u;
const QUAD_UNITS: u32 = 4u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, sums);
}

fn gradient_of(term: u32) -> u32 {
    return term;
}
