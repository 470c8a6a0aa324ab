// One step of an LSTM, the recurrent product fused with gates and state update.
//   i, f, o = s(W x + b_ih + W_hh h + b_hh + p c)     p_i, p_f see c, p_o sees c'
//   g = a(W x + b_ih + W_hh h + b_hh)
//   c' = f c + i g                                    h' = o b(c')
// With COUPLED f = 1 - i; with CELL_CLIP c' is limited before it is used. With PROJECTED
// h' goes to the kernel that projects it.
//
// Reads the previous h of its sequences and the weights of its unit; writes h' and y (or
// `inner`), c' and, with SAVE, what the backward pass needs of the gates.
#import step
#import half
#import gates

// 1: there are peepholes.
const PEEPHOLE: u32 = 0u;
// 1: f = 1 - i.
const COUPLED: u32 = 0u;
// 1: c' is limited to +-step.cell_clip.
const CELL_CLIP: u32 = 0u;
// 1: h' is projected.
const PROJECTED: u32 = 0u;

// [3, H], of i, f and o
@group(0) @binding(2) var<storage, read> weight_p: array<f32>;
// [rows, S, H], on entry W_ih x + b_ih in four blocks; with SAVE and peepholes two more blocks
// take c' and c. Or with STREAM x [streams, I].
@group(0) @binding(3) var<storage, read_write> gates: array<Gate>;
// [P, 4, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(4) var<storage, read> weight_hh_t: array<f32>;
// [4, H]
@group(0) @binding(5) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(6) var<storage, read_write> h: array<f32>;
@group(0) @binding(7) var<storage, read_write> c: array<f32>;
// y; or with PROJECTED `inner` [rows, H]
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

fn diagonal_start() -> u32 {
    return step.lane * step.lane_diagonal;
}

fn peephole(gate: u32, j: u32, c: f32) -> f32 {
    if PEEPHOLE != 0u {
        return weight_p[diagonal_start() + gate * step.hidden + j] * c;
    }
    return 0.0;
}

fn cell_clipped(c: f32) -> f32 {
    if CELL_CLIP != 0u {
        return limit(c, -step.cell_clip.x, step.cell_clip.x);
    }
    return c;
}

// What a unit needs of storage that no invocation writes before the step is done: W_ih x + b_ih.
alias Input = vec4f;
// What it keeps for itself from step to step: c.
alias Own = f32;
var<private> own_after: Own;

// For streams the input is in the product.
fn input_of(n: u32, j: u32) -> Input {
    if STREAM != 0u {
        return vec4f();
    }
    let at = step.gates_start + n * step.gates_row + j;
    let hidden = step.hidden;
    return vec4f(
        f32(gates[at]),
        f32(gates[at + hidden]),
        f32(gates[at + 2u * hidden]),
        f32(gates[at + 3u * hidden]),
    );
}

// What the sums of a unit begin with: b_hh.
fn bias_of(j: u32) -> vec4f {
    let hidden = step.hidden;
    let unit = bias_start() + j;
    return vec4f(
        bias_hh[unit],
        bias_hh[unit + hidden],
        bias_hh[unit + 2u * hidden],
        bias_hh[unit + 3u * hidden],
    );
}

fn own_of(n: u32, j: u32) -> Own {
    return c[c_before(n) + j];
}

// Takes the sums of a unit of a sequence that has this step, bias included, through the gates.
fn finish_forward(n: u32, j: u32, input: Input, own: Own, product: vec4f) {
    let hidden = step.hidden;
    let c_old = select(own, 0.0, reset(n));
    let at = step.gates_start + n * step.gates_row + j;
    if !live(n) {
        c[c_after(n) + j] = c_old;
        own_after = c_old;
        if PROJECTED != 0u {
            y[step.inner_start + n * step.inner_row + j] = 0.0;
        } else {
            hold_state(n, j);
        }
        // The sums for the peepholes' gradients run over these rows, with zeros as gates' gradients.
        if SAVE != 0u && PEEPHOLE != 0u {
            gates[at + 4u * hidden] = Gate(c_old);
            gates[at + 5u * hidden] = Gate(c_old);
        }
        return;
    }
    let pre = input + product;
    let pre_i = pre.x + peephole(0u, j, c_old);
    let pre_f = pre.y + peephole(1u, j, c_old);
    let i = gate(ACTIVATION_0, p0(), pre_i);
    var f = 1.0 - i;
    if COUPLED == 0u {
        f = gate(ACTIVATION_0, p0(), pre_f);
    }
    let g = gate(ACTIVATION_1, p1(), pre.z);
    let c_new = cell_clipped(f * c_old + i * g);
    c[c_after(n) + j] = c_new;
    own_after = c_new;
    let pre_o = pre.w + peephole(2u, j, c_new);
    let o = gate(ACTIVATION_0, p0(), pre_o);
    let value = o * activate(ACTIVATION_2, p2(), c_new);
    if PROJECTED != 0u {
        y[step.inner_start + n * step.inner_row + j] = value;
    } else {
        store_state(n, j, value);
    }
    if SAVE != 0u {
        gates[at] = Gate(kept(pre_i, i));
        gates[at + hidden] = Gate(kept(pre_f, f));
        gates[at + 2u * hidden] = Gate(kept(pre.z, g));
        gates[at + 3u * hidden] = Gate(kept(pre_o, o));
        if PEEPHOLE != 0u {
            gates[at + 4u * hidden] = Gate(c_new);
            gates[at + 5u * hidden] = Gate(c_old);
        }
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
    var xi = vec4f();
    var xf = vec4f();
    var xg = vec4f();
    var xo = vec4f();
    if STREAM != 0u {
        let x = four_inputs(n);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(f32(gates[x.x + k]), f32(gates[x.y + k]), f32(gates[x.z + k]), f32(gates[x.w + k]));
            let w = k * 4u * hidden + j;
            xi += v * weight_hh_t[w];
            xf += v * weight_hh_t[w + hidden];
            xg += v * weight_hh_t[w + 2u * hidden];
            xo += v * weight_hh_t[w + 3u * hidden];
        }
        let bias = step.input * 4u * hidden + j;
        xi += weight_hh_t[bias];
        xf += weight_hh_t[bias + hidden];
        xg += weight_hh_t[bias + 2u * hidden];
        xo += weight_hh_t[bias + 3u * hidden];
    }
    let row = four_h(n);
    let weights = recurrent_start(4u) + j;
    var i = xi;
    var f = xf;
    var g = xg;
    var o = xo;
    for (var k = 0u; k < step.output; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 4u * hidden;
        i += x * weight_hh_t[w];
        f += x * weight_hh_t[w + hidden];
        g += x * weight_hh_t[w + 2u * hidden];
        o += x * weight_hh_t[w + 3u * hidden];
    }
    store_forward(n, j, vec4f(i.x, f.x, g.x, o.x));
    store_forward(n + 1u, j, vec4f(i.y, f.y, g.y, o.y));
    store_forward(n + 2u, j, vec4f(i.z, f.z, g.z, o.z));
    store_forward(n + 3u, j, vec4f(i.w, f.w, g.w, o.w));
}

// One step of back-propagation through time:
//   dh = dstate.h + dy[t] + dgates[t + 1] W_hh; with PROJECTED dy[t] W_hr, where dy is the
//        gradient of the projected h'
//   do = dh b(c') s'                     dc = dstate.c + dh o b'(c') + do p_o, 0 where clipped
//   di = dc g s'    df = dc c s'    dg = dc i a'    or coupled: di = dc (g - c) s', df = 0
//   dstate.c = dc f + di p_i + df p_f    dstate.h = 0, since all of dh flows through the gates
// It reads the gates' gradients of step t + 1 of its sequences and writes those of step t for
// its unit.

// [rows, S, H]
@group(0) @binding(3) var<storage, read> saved_gates: array<Gate>;
@group(0) @binding(4) var<storage, read> saved_c: array<f32>;
// [4, H, H]: W_hh as PyTorch has it; with PROJECTED [P, H]: W_hr
@group(0) @binding(5) var<storage, read> weight_hh: array<f32>;
// The gradient of y; with PROJECTED [rows, P]: that of the projected h'
@group(0) @binding(6) var<storage, read> dy: array<f32>;
// [rows, 4, H]
@group(0) @binding(7) var<storage, read_write> dgates: array<f32>;
// [N, P] and [N, H]: gradients of h and c
@group(0) @binding(8) var<storage, read_write> dstate: array<f32>;

fn peephole_weight(gate: u32, j: u32) -> f32 {
    if PEEPHOLE != 0u {
        return weight_p[diagonal_start() + gate * step.hidden + j];
    }
    return 0.0;
}

// What a unit needs of storage that is not written: the gates that were kept, c after the step and before
// it, the gradient of the output.
struct Saved {
    gates: vec4f,
    c_new: f32,
    c_old: f32,
    dy: f32,
}
// What it keeps for itself from step to step: the gradients of h past the gates and of c.
alias OwnBack = vec2f;
var<private> own_after_back: OwnBack;
// The gradients of the gates that were found last.
var<private> handed_back: vec4f;

fn saved_of(n: u32, j: u32) -> Saved {
    let hidden = step.hidden;
    let at = step.gates_start + n * step.gates_row + j;
    var saved: Saved;
    saved.gates = vec4f(
        f32(saved_gates[at]),
        f32(saved_gates[at + hidden]),
        f32(saved_gates[at + 2u * hidden]),
        f32(saved_gates[at + 3u * hidden]),
    );
    saved.c_new = saved_c[c_after(n) + j];
    saved.c_old = saved_c[c_before(n) + j];
    if PROJECTED == 0u {
        saved.dy = output_gradient(n, j);
    }
    return saved;
}

fn own_back_of(n: u32, j: u32) -> OwnBack {
    var own = vec2f(0.0, dstate[dstate_start() + step.dc_start + n * step.hidden + j]);
    if PROJECTED == 0u {
        own.x = past_gates(n, j);
    }
    return own;
}

// Takes the product of a unit of a sequence that has this step through the gates.
fn finish_backward(n: u32, j: u32, saved: Saved, own: OwnBack, product: f32) {
    let hidden = step.hidden;
    var dh = product;
    if PROJECTED == 0u {
        dh = sum_gradients(n, own.x, saved.dy, product);
    }
    let to = step.dgates_start + n * step.dgates_row + j;
    let c_state = dstate_start() + step.dc_start + n * hidden + j;
    let zeroed = reset(n);
    if !live(n) {
#unroll g 4
        dgates[to + {g}u * hidden] = 0.0;
#end
        handed_back = vec4f();
        if PROJECTED == 0u {
            dstate[dstate_start() + n * step.output + j] = dh;
        }
        own_after_back = vec2f(dh, select(own.y, 0.0, zeroed));
        dstate[c_state] = own_after_back.y;
        return;
    }
    let kept_i = saved.gates.x;
    let kept_f = saved.gates.y;
    let kept_g = saved.gates.z;
    let kept_o = saved.gates.w;
    let i = gate_value(ACTIVATION_0, p0(), kept_i);
    let g = gate_value(ACTIVATION_1, p1(), kept_g);
    let o = gate_value(ACTIVATION_0, p0(), kept_o);
    var f = 1.0 - i;
    if COUPLED == 0u {
        f = gate_value(ACTIVATION_0, p0(), kept_f);
    }
    let c_new = saved.c_new;
    let c_old = select(saved.c_old, 0.0, zeroed);
    let b = activate(ACTIVATION_2, p2(), c_new);

    let d_o = dh * b * gate_slope(ACTIVATION_0, p0(), kept_o, o);
    var dc = own.y + dh * o * slope(ACTIVATION_2, p2(), c_new, b)
        + d_o * peephole_weight(2u, j);
    if CELL_CLIP != 0u {
        dc = select(dc, 0.0, abs(c_new) >= step.cell_clip.x);
    }
    var d_i = dc * g;
    var d_f = 0.0;
    if COUPLED != 0u {
        d_i -= dc * c_old;
    } else {
        d_f = dc * c_old * gate_slope(ACTIVATION_0, p0(), kept_f, f);
    }
    d_i *= gate_slope(ACTIVATION_0, p0(), kept_i, i);
    let d_g = dc * i * gate_slope(ACTIVATION_1, p1(), kept_g, g);
    dgates[to] = d_i;
    dgates[to + hidden] = d_f;
    dgates[to + 2u * hidden] = d_g;
    dgates[to + 3u * hidden] = d_o;
    handed_back = vec4f(d_i, d_f, d_g, d_o);
    if PROJECTED == 0u {
        dstate[dstate_start() + n * step.output + j] = 0.0;
    }
    let dc_old = dc * f + d_i * peephole_weight(0u, j) + d_f * peephole_weight(1u, j);
    own_after_back = vec2f(0.0, select(dc_old, 0.0, zeroed));
    dstate[c_state] = own_after_back.y;
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
    if PROJECTED != 0u {
        let row = step.outer_start + four_rows(n) * step.outer_row;
        for (var k = 0u; k < step.output; k++) {
            let d = vec4f(dy[row.x + k], dy[row.y + k], dy[row.z + k], dy[row.w + k]);
            dh += d * weight_hh[k * hidden + j];
        }
    } else if step.next_count > 0u {
        let row = four_next(n);
        for (var k = 0u; k < 4u * hidden; k++) {
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

// What the forms over quads and the kernels of all steps ask of a cell: a quad is a unit with its four gates.

@group(0) @binding(4) var<storage, read> weight_quads: array<FourWeights>;
@group(0) @binding(5) var<storage, read> weight_quads_back: array<FourWeights>;
@group(0) @binding(4) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(5) var<storage, read> weight_blocks_back: array<Weight>;

const GATES: u32 = 4u;
const QUAD_UNITS: u32 = 1u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, sums);
}

fn gradient_of(term: u32) -> u32 {
    return term;
}
