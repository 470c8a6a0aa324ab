// One step of an LSTM, the recurrent product fused with gates and state update.
//   i, f, o = s(W x + b_ih + W_hh h + b_hh + p c)     p_i, p_f see c, p_o sees c'
//   g = a(W x + b_ih + W_hh h + b_hh)
//   c' = f c + i g                                    h' = o b(c')
// With COUPLED f = 1 - i; with CELL_CLIP c' is limited before it is used. With PROJECTED
// h' goes to the kernel that projects it.
//
// Reads the previous h of its sequences and the weights of its unit; writes h' and y (or
// `inner`), c' and, with SAVE, what the backward pass needs of the gates.
#import sequence
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

fn store_forward(n: u32, j: u32, streamed: vec4f, product: vec4f) {
    if n >= row_count() {
        return;
    }
    let hidden = step.hidden;
    let c_old = select(c[c_before(n) + j], 0.0, reset(n));
    let at = step.gates_start + n * step.gates_row + j;
    if !live(n) {
        c[c_after(n) + j] = c_old;
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
    var input = streamed;
    if STREAM == 0u {
        input = vec4f(
            f32(gates[at]),
            f32(gates[at + hidden]),
            f32(gates[at + 2u * hidden]),
            f32(gates[at + 3u * hidden]),
        );
    }
    let unit = bias_start() + j;
    let bias = vec4f(
        bias_hh[unit],
        bias_hh[unit + hidden],
        bias_hh[unit + 2u * hidden],
        bias_hh[unit + 3u * hidden],
    );
    let pre = input + product + bias;
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
    var i = vec4f();
    var f = vec4f();
    var g = vec4f();
    var o = vec4f();
    for (var k = 0u; k < step.output; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 4u * hidden;
        i += x * weight_hh_t[w];
        f += x * weight_hh_t[w + hidden];
        g += x * weight_hh_t[w + 2u * hidden];
        o += x * weight_hh_t[w + 3u * hidden];
    }
    store_forward(n, j, vec4f(xi.x, xf.x, xg.x, xo.x), vec4f(i.x, f.x, g.x, o.x));
    store_forward(n + 1u, j, vec4f(xi.y, xf.y, xg.y, xo.y), vec4f(i.y, f.y, g.y, o.y));
    store_forward(n + 2u, j, vec4f(xi.z, xf.z, xg.z, xo.z), vec4f(i.z, f.z, g.z, o.z));
    store_forward(n + 3u, j, vec4f(xi.w, xf.w, xg.w, xo.w), vec4f(i.w, f.w, g.w, o.w));
}

// What `sequence` reads: W_hh in blocks.
@group(0) @binding(4) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(5) var<storage, read> weight_blocks_back: array<Weight>;

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh_t(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 4u * PADDED {
        let at = weights_of(row, 4u);
        for (var i = 0u; i < 4u; i++) {
            let k = 4u * nth + i;
            if k < HIDDEN {
                w = with_block_weight(w, i, at + k * 4u * UNITS);
            }
        }
    }
    return w;
}

// The sums of a step with weights that are not kept.
fn sums_forward(local: u32) {
    for (var r = local; r < 4u * PADDED; r += THREADS) {
        let weights = weights_of(r, 4u);
        for (var n = 0u; n < TILE; n++) {
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[n * TERMS_ROW + k] * block_weight(weights + k * 4u * UNITS);
            }
            memory[TILE * TERMS_ROW + n * 4u * PADDED + r] = sum;
        }
    }
}

// All steps; see `sequence`.
@compute @workgroup_size(THREADS)
fn sequence_forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    begin_lane(group.z);
    let first = group.x * TILE;
    #unroll q 0..KEPT_ROWS
    let row{q} = local + {q}u * THREADS;
    #unroll k 0..KEPT_TERMS
    let w{q}_{k} = four_weight_hh_t(row{q}, {k}u);
    #end
    #end
    var held = 0u;
    for (var nth = 0u; nth < params.steps; nth++) {
        enter(nth);
        let rows = rows_of(first, step.count);
        // Sequences that begin here.
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            if n >= held {
                memory[n * TERMS_ROW + j] = h[h_before(first + n) + j];
            }
        }
        held = rows;
        workgroupBarrier();
        if KEPT_TERMS == 0u {
            sums_forward(local);
        }
        #unroll q 0..KEPT_ROWS
        #unroll n 0..TILE
        var a{q}_{n} = vec4f();
        #end
        #unroll k 0..KEPT_TERMS
        #unroll n 0..TILE
        a{q}_{n} += four_weights(w{q}_{k}) * terms_at({n}u * TERMS_ROW + 4u * {k}u);
        #end
        #end
        if row{q} < 4u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 1u * TERMS_ROW + {n}u * 4u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * TERMS_ROW + n * 4u * PADDED;
            store_forward(first + n, j, vec4f(), vec4f(
                memory[sums + sum_of(0u, 4u, j)],
                memory[sums + sum_of(1u, 4u, j)],
                memory[sums + sum_of(2u, 4u, j)],
                memory[sums + sum_of(3u, 4u, j)],
            ));
            memory[n * TERMS_ROW + j] = handed;
        }
    }
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

// The gradients of the gates that `store_backward` found last.
var<private> handed_back: vec4f;

fn store_backward(n: u32, j: u32, product: f32) {
    if n >= step.count {
        return;
    }
    let hidden = step.hidden;
    var dh = product;
    if PROJECTED == 0u {
        dh = state_gradient(n, j, product);
    }
    let to = step.dgates_start + n * step.dgates_row + j;
    let c_state = dstate_start() + step.dc_start + n * hidden + j;
    let zeroed = reset(n);
    if !live(n) {
        for (var gate = 0u; gate < 4u; gate++) {
            dgates[to + gate * hidden] = 0.0;
        }
        handed_back = vec4f();
        if PROJECTED == 0u {
            dstate[dstate_start() + n * step.output + j] = dh;
        }
        dstate[c_state] = select(dstate[c_state], 0.0, zeroed);
        return;
    }
    let at = step.gates_start + n * step.gates_row + j;
    let kept_i = f32(saved_gates[at]);
    let kept_f = f32(saved_gates[at + hidden]);
    let kept_g = f32(saved_gates[at + 2u * hidden]);
    let kept_o = f32(saved_gates[at + 3u * hidden]);
    let i = gate_value(ACTIVATION_0, p0(), kept_i);
    let g = gate_value(ACTIVATION_1, p1(), kept_g);
    let o = gate_value(ACTIVATION_0, p0(), kept_o);
    var f = 1.0 - i;
    if COUPLED == 0u {
        f = gate_value(ACTIVATION_0, p0(), kept_f);
    }
    let c_new = saved_c[c_after(n) + j];
    let c_old = select(saved_c[c_before(n) + j], 0.0, zeroed);
    let b = activate(ACTIVATION_2, p2(), c_new);

    let d_o = dh * b * gate_slope(ACTIVATION_0, p0(), kept_o, o);
    var dc = dstate[c_state] + dh * o * slope(ACTIVATION_2, p2(), c_new, b)
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
    dstate[c_state] = select(dc_old, 0.0, zeroed);
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

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 4u * PADDED {
        let at = weights_back(row);
        for (var i = 0u; i < 4u; i++) {
            let k = 4u * nth + i;
            if k < HIDDEN {
                w = with_block_weight_back(w, i, at + k * UNITS);
            }
        }
    }
    return w;
}

// The sums of a step back with weights that are not kept.
fn sums_backward(local: u32) {
    for (var r = local; r < 4u * PADDED; r += THREADS) {
        let weights = weights_back(r);
        let gate = r % (4u * UNITS) / UNITS;
        for (var n = 0u; n < TILE; n++) {
            let terms = (n * 4u + gate) * TERMS_ROW;
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[terms + k] * block_weight_back(weights + k * UNITS);
            }
            memory[TILE * 4u * TERMS_ROW + n * 4u * PADDED + r] = sum;
        }
    }
}

// All steps back.
@compute @workgroup_size(THREADS)
fn sequence_backward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    begin_lane(group.z);
    let first = group.x * TILE;
    #unroll q 0..KEPT_ROWS
    let row{q} = local + {q}u * THREADS;
    #unroll k 0..KEPT_TERMS
    let w{q}_{k} = four_weight_hh(row{q}, {k}u);
    #end
    #end
    // The gradients of the step after the last one, where there is one.
    enter(params.steps - 1u);
    let after = rows_of(first, step.next_count);
    for (var i = local; i < after * 4u * HIDDEN; i += THREADS) {
        let n = i / (4u * HIDDEN);
        let gate = i / HIDDEN % 4u;
        let source = step.dgates_next + (first + n) * step.dgates_row + gate * HIDDEN;
        memory[(n * 4u + gate) * TERMS_ROW + i % HIDDEN] = dgates[source + i % HIDDEN];
    }
    for (var nth = params.steps; nth > 0u; nth--) {
        enter(nth - 1u);
        let rows = rows_of(first, step.count);
        workgroupBarrier();
        if KEPT_TERMS == 0u {
            sums_backward(local);
        }
        #unroll q 0..KEPT_ROWS
        let gate{q} = row{q} % (4u * UNITS) / UNITS;
        #unroll n 0..TILE
        var a{q}_{n} = vec4f();
        #end
        #unroll k 0..KEPT_TERMS
        #unroll n 0..TILE
        a{q}_{n} += four_weights(w{q}_{k}) * terms_at(({n}u * 4u + gate{q}) * TERMS_ROW + 4u * {k}u);
        #end
        #end
        if row{q} < 4u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 4u * TERMS_ROW + {n}u * 4u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * 4u * TERMS_ROW + n * 4u * PADDED;
            var product = 0.0;
            if first + n < step.next_count {
                product = memory[sums + sum_of(0u, 4u, j)] + memory[sums + sum_of(1u, 4u, j)] + memory[sums + sum_of(2u, 4u, j)] + memory[sums + sum_of(3u, 4u, j)];
            }
            store_backward(first + n, j, product);
            let terms = n * 4u * TERMS_ROW + j;
            memory[terms + 0u * TERMS_ROW] = handed_back.x;
            memory[terms + 1u * TERMS_ROW] = handed_back.y;
            memory[terms + 2u * TERMS_ROW] = handed_back.z;
            memory[terms + 3u * TERMS_ROW] = handed_back.w;
        }
    }
}

// What `quads` asks of a cell: a quad is a unit with its four gates.

@group(0) @binding(4) var<storage, read> weight_quads: array<FourWeights>;
@group(0) @binding(5) var<storage, read> weight_quads_back: array<FourWeights>;

const GATES: u32 = 4u;
const QUAD_UNITS: u32 = 1u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, vec4f(), sums);
}

fn gradient_of(term: u32) -> u32 {
    return term;
}
