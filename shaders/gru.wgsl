// One step of a GRU with the reset gate after the product, as PyTorch and cuDNN have it:
//   r = s(W_ir x + b_ir + W_hr h + b_hr)      z = s(W_iz x + b_iz + W_hz h + b_hz)
//   q = W_hn h + b_hn                         n = a(W_in x + b_in + r q)
//   h' = (1 - z) n + z h
//
// Reads the previous h of its sequences and the weights of its unit; writes h', y and, with
// SAVE, what the backward pass needs of r, z, n and q.
#import step
#import half
#import gates

// [rows, S, H], on entry W_ih x + b_ih in three blocks; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<Gate>;
// [H, 3, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [3, H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// What a unit needs of storage that no invocation writes before the step is done: W_ih x + b_ih.
alias Input = vec3f;
// What it keeps for itself from step to step: h.
alias Own = f32;
var<private> own_after: Own;

// For streams the input is in the product.
fn input_of(row: u32, j: u32) -> Input {
    if STREAM != 0u {
        return vec3f();
    }
    let at = step.gates_start + row * step.gates_row + j;
    return vec3f(f32(gates[at]), f32(gates[at + step.hidden]), f32(gates[at + 2u * step.hidden]));
}

// What the sums of a unit begin with: b_hh.
fn bias_of(j: u32) -> vec4f {
    let at = bias_start() + j;
    return vec4f(bias_hh[at], bias_hh[at + step.hidden], bias_hh[at + 2u * step.hidden], 0.0);
}

fn own_of(row: u32, j: u32) -> Own {
    return h[h_before(row) + j];
}

// Takes the sums of a unit of a sequence that has this step, bias included, through the gates: those of r, z
// and q, and for streams what n has of x.
fn finish_forward(row: u32, j: u32, input: Input, own: Own, product: vec4f) {
    if !live(row) {
        hold_state(row, j);
        own_after = handed;
        return;
    }
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    let pre_r = input.x + product.x;
    let pre_z = input.y + product.y;
    let q = product.z;
    let r = gate(ACTIVATION_0, p0(), pre_r);
    let z = gate(ACTIVATION_0, p0(), pre_z);
    let pre_n = input.z + product.w + r * q;
    let n = gate(ACTIVATION_1, p1(), pre_n);
    store_state(row, j, (1.0 - z) * n + z * own);
    own_after = handed;
    if SAVE != 0u {
        gates[at] = Gate(kept(pre_r, r));
        gates[at + hidden] = Gate(kept(pre_z, z));
        gates[at + 2u * hidden] = Gate(kept(pre_n, n));
        gates[at + 3u * hidden] = Gate(q);
    }
}

fn store_forward(row: u32, j: u32, product: vec4f) {
    if row < row_count() {
        finish_forward(row, j, input_of(row, j), own_of(row, j), product + bias_of(j));
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden || first >= row_count() {
        return;
    }
    var xr = vec4f();
    var xz = vec4f();
    var xn = vec4f();
    if STREAM != 0u {
        let x = four_inputs(first);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(f32(gates[x.x + k]), f32(gates[x.y + k]), f32(gates[x.z + k]), f32(gates[x.w + k]));
            let w = k * 3u * hidden + j;
            xr += v * weight_hh_t[w];
            xz += v * weight_hh_t[w + hidden];
            xn += v * weight_hh_t[w + 2u * hidden];
        }
        let bias = step.input * 3u * hidden + j;
        xr += weight_hh_t[bias];
        xz += weight_hh_t[bias + hidden];
        xn += weight_hh_t[bias + 2u * hidden];
    }
    let row = four_h(first);
    let weights = recurrent_start(3u) + j;
    var r = xr;
    var z = xz;
    var n = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 3u * hidden;
        r += x * weight_hh_t[w];
        z += x * weight_hh_t[w + hidden];
        n += x * weight_hh_t[w + 2u * hidden];
    }
    store_forward(first, j, vec4f(r.x, z.x, n.x, xn.x));
    store_forward(first + 1u, j, vec4f(r.y, z.y, n.y, xn.y));
    store_forward(first + 2u, j, vec4f(r.z, z.z, n.z, xn.z));
    store_forward(first + 3u, j, vec4f(r.w, z.w, n.w, xn.w));
}

// One step of back-propagation through time:
//   dh = dstate + dy[t] + (dr, dz, dq)[t + 1] W_hh
//   dz = dh (h - n) s'      dn = dh (1 - z) a'
//   dr = dn q s'            dq = dn r
//   dstate = dh z, the part that does not pass through the gates
// It reads the gradients of step t + 1 of its sequences and writes those of step t for its
// unit.

// [rows, 4, H]: r, z, n, q
@group(0) @binding(2) var<storage, read> saved_gates: array<Gate>;
@group(0) @binding(3) var<storage, read> saved_h: array<f32>;
// [3, H, H]: W_hh as PyTorch has it
@group(0) @binding(4) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
// [rows, 4, H]: dr, dz, dn, dq
@group(0) @binding(6) var<storage, read_write> dgates: array<f32>;
// [N, H]
@group(0) @binding(7) var<storage, read_write> dstate: array<f32>;

// What a unit needs of storage that is not written: what was kept of r, z, n and q, h before the step, the
// gradient of the output.
struct Saved {
    gates: vec4f,
    h: f32,
    dy: f32,
}
// What it keeps for itself from step to step: the gradient of h past the gates.
alias OwnBack = f32;
var<private> own_after_back: OwnBack;
// The gradients of r, z and q that were found last.
var<private> handed_back: vec4f;

fn saved_of(row: u32, j: u32) -> Saved {
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    var saved: Saved;
    saved.gates = vec4f(
        f32(saved_gates[at]),
        f32(saved_gates[at + hidden]),
        f32(saved_gates[at + 2u * hidden]),
        f32(saved_gates[at + 3u * hidden]),
    );
    saved.h = saved_h[h_before(row) + j];
    saved.dy = output_gradient(row, j);
    return saved;
}

fn own_back_of(row: u32, j: u32) -> OwnBack {
    return past_gates(row, j);
}

// Takes the product of a unit of a sequence that has this step through the gates.
fn finish_backward(row: u32, j: u32, saved: Saved, own: OwnBack, product: f32) {
    let hidden = step.hidden;
    let unit = dstate_start() + row * hidden + j;
    let to = step.dgates_start + row * step.dgates_row + j;
    let dh = sum_gradients(row, own, saved.dy, product);
    if !live(row) {
#unroll s 4
        dgates[to + {s}u * hidden] = 0.0;
#end
        handed_back = vec4f();
        own_after_back = dh;
        dstate[unit] = dh;
        return;
    }
    let kept_r = saved.gates.x;
    let kept_z = saved.gates.y;
    let kept_n = saved.gates.z;
    let q = saved.gates.w;
    let r = gate_value(ACTIVATION_0, p0(), kept_r);
    let z = gate_value(ACTIVATION_0, p0(), kept_z);
    let n = gate_value(ACTIVATION_1, p1(), kept_n);
    let dn = dh * (1.0 - z) * gate_slope(ACTIVATION_1, p1(), kept_n, n);
    let dr = dn * q * gate_slope(ACTIVATION_0, p0(), kept_r, r);
    let dz = dh * (saved.h - n) * gate_slope(ACTIVATION_0, p0(), kept_z, z);
    dgates[to] = dr;
    dgates[to + hidden] = dz;
    dgates[to + 2u * hidden] = dn;
    dgates[to + 3u * hidden] = dn * r;
    handed_back = vec4f(dr, dz, dn * r, 0.0);
    own_after_back = dh * z;
    dstate[unit] = own_after_back;
}

fn store_backward(row: u32, j: u32, product: f32) {
    if row < step.count {
        finish_backward(row, j, saved_of(row, j), own_back_of(row, j), product);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden {
        return;
    }
    var dh = vec4f();
    if step.next_count > 0u {
        let row = four_next(first);
        for (var k = 0u; k < 3u * hidden; k++) {
            // The third block of W_hh meets dq, which stands behind dn.
            let d = row + select(k, k + hidden, k >= 2u * hidden);
            let x = vec4f(dgates[d.x], dgates[d.y], dgates[d.z], dgates[d.w]);
            dh += x * weight_hh[k * hidden + j];
        }
        dh = with_next(first, dh);
    }
    store_backward(first, j, dh.x);
    store_backward(first + 1u, j, dh.y);
    store_backward(first + 2u, j, dh.z);
    store_backward(first + 3u, j, dh.w);
}

// What the forms over quads and the kernels of all steps ask of a cell: a quad is a unit with its three gates.
// Behind them stands with STREAM the third gate of x, since the reset gate is applied to that of h alone.

@group(0) @binding(3) var<storage, read> weight_quads: array<FourWeights>;
@group(0) @binding(4) var<storage, read> weight_quads_back: array<FourWeights>;
@group(0) @binding(3) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(4) var<storage, read> weight_blocks_back: array<Weight>;

const GATES: u32 = 3u;
const QUAD_UNITS: u32 = 1u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, vec4f(sums.xyz, select(0.0, sums.w, STREAM != 0u)));
}

// The third block of W_hh meets dq, which stands behind dn.
fn gradient_of(term: u32) -> u32 {
    return select(term, term + step.hidden, term >= 2u * step.hidden);
}
