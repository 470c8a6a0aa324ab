// One step of a GRU with the reset gate after the product, as PyTorch and cuDNN have it:
//   r = s(W_ir x + b_ir + W_hr h + b_hr)      z = s(W_iz x + b_iz + W_hz h + b_hz)
//   q = W_hn h + b_hn                         n = a(W_in x + b_in + r q)
//   h' = (1 - z) n + z h
//
// Reads the previous h of its sequences and the weights of its unit; writes h', y and, with
// SAVE, what the backward pass needs of r, z, n and q.
#import sequence
#import gates

// [rows, S, H], on entry W_ih x + b_ih in three blocks; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<Gate>;
// [H, 3, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [3, H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

fn store_forward(row: u32, j: u32, streamed: vec3f, product: vec3f) {
    if row >= row_count() {
        return;
    }
    if !live(row) {
        hold_state(row, j);
        return;
    }
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    var input = streamed;
    if STREAM == 0u {
        input = vec3f(f32(gates[at]), f32(gates[at + hidden]), f32(gates[at + 2u * hidden]));
    }
    let bias = bias_start() + j;
    let pre_r = input.x + product.x + bias_hh[bias];
    let pre_z = input.y + product.y + bias_hh[bias + hidden];
    let q = product.z + bias_hh[bias + 2u * hidden];
    let r = gate(ACTIVATION_0, p0(), pre_r);
    let z = gate(ACTIVATION_0, p0(), pre_z);
    let pre_n = input.z + r * q;
    let n = gate(ACTIVATION_1, p1(), pre_n);
    store_state(row, j, (1.0 - z) * n + z * h[h_before(row) + j]);
    if SAVE != 0u {
        gates[at] = Gate(kept(pre_r, r));
        gates[at + hidden] = Gate(kept(pre_z, z));
        gates[at + 2u * hidden] = Gate(kept(pre_n, n));
        gates[at + 3u * hidden] = Gate(q);
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
    var r = vec4f();
    var z = vec4f();
    var n = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 3u * hidden;
        r += x * weight_hh_t[w];
        z += x * weight_hh_t[w + hidden];
        n += x * weight_hh_t[w + 2u * hidden];
    }
    store_forward(first, j, vec3f(xr.x, xz.x, xn.x), vec3f(r.x, z.x, n.x));
    store_forward(first + 1u, j, vec3f(xr.y, xz.y, xn.y), vec3f(r.y, z.y, n.y));
    store_forward(first + 2u, j, vec3f(xr.z, xz.z, xn.z), vec3f(r.z, z.z, n.z));
    store_forward(first + 3u, j, vec3f(xr.w, xz.w, xn.w), vec3f(r.w, z.w, n.w));
}

// What `sequence` reads: W_hh in blocks.
@group(0) @binding(3) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(4) var<storage, read> weight_blocks_back: array<Weight>;

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh_t(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 3u * PADDED {
        let at = weights_of(row, 3u);
        for (var i = 0u; i < 4u; i++) {
            let k = 4u * nth + i;
            if k < HIDDEN {
                w = with_block_weight(w, i, at + k * 3u * UNITS);
            }
        }
    }
    return w;
}

// The sums of a step with weights that are not kept.
fn sums_forward(local: u32) {
    for (var r = local; r < 3u * PADDED; r += THREADS) {
        let weights = weights_of(r, 3u);
        for (var n = 0u; n < TILE; n++) {
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[n * TERMS_ROW + k] * block_weight(weights + k * 3u * UNITS);
            }
            memory[TILE * TERMS_ROW + n * 3u * PADDED + r] = sum;
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
        if row{q} < 3u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 1u * TERMS_ROW + {n}u * 3u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * TERMS_ROW + n * 3u * PADDED;
            store_forward(first + n, j, vec3f(), vec3f(
                memory[sums + sum_of(0u, 3u, j)],
                memory[sums + sum_of(1u, 3u, j)],
                memory[sums + sum_of(2u, 3u, j)],
            ));
            memory[n * TERMS_ROW + j] = handed;
        }
    }
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

// The gradients of r, z and q that `store_backward` found last.
var<private> handed_back: vec3f;

fn store_backward(row: u32, j: u32, product: f32) {
    if row >= step.count {
        return;
    }
    let hidden = step.hidden;
    let unit = dstate_start() + row * hidden + j;
    let to = step.dgates_start + row * step.dgates_row + j;
    let dh = state_gradient(row, j, product);
    if !live(row) {
        for (var slot = 0u; slot < 4u; slot++) {
            dgates[to + slot * hidden] = 0.0;
        }
        handed_back = vec3f();
        dstate[unit] = dh;
        return;
    }
    let at = step.gates_start + row * step.gates_row + j;
    let kept_r = f32(saved_gates[at]);
    let kept_z = f32(saved_gates[at + hidden]);
    let kept_n = f32(saved_gates[at + 2u * hidden]);
    let q = f32(saved_gates[at + 3u * hidden]);
    let r = gate_value(ACTIVATION_0, p0(), kept_r);
    let z = gate_value(ACTIVATION_0, p0(), kept_z);
    let n = gate_value(ACTIVATION_1, p1(), kept_n);
    let dn = dh * (1.0 - z) * gate_slope(ACTIVATION_1, p1(), kept_n, n);
    let dr = dn * q * gate_slope(ACTIVATION_0, p0(), kept_r, r);
    let dz = dh * (saved_h[h_before(row) + j] - n) * gate_slope(ACTIVATION_0, p0(), kept_z, z);
    dgates[to] = dr;
    dgates[to + hidden] = dz;
    dgates[to + 2u * hidden] = dn;
    dgates[to + 3u * hidden] = dn * r;
    handed_back = vec3f(dr, dz, dn * r);
    dstate[unit] = dh * z;
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

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 3u * PADDED {
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
    for (var r = local; r < 3u * PADDED; r += THREADS) {
        let weights = weights_back(r);
        let gate = r % (3u * UNITS) / UNITS;
        for (var n = 0u; n < TILE; n++) {
            let terms = (n * 3u + gate) * TERMS_ROW;
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[terms + k] * block_weight_back(weights + k * UNITS);
            }
            memory[TILE * 3u * TERMS_ROW + n * 3u * PADDED + r] = sum;
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
    for (var i = local; i < after * 3u * HIDDEN; i += THREADS) {
        let n = i / (3u * HIDDEN);
        let gate = i / HIDDEN % 3u;
        let source = step.dgates_next + (first + n) * step.dgates_row + select(gate, 3u, gate == 2u) * HIDDEN;
        memory[(n * 3u + gate) * TERMS_ROW + i % HIDDEN] = dgates[source + i % HIDDEN];
    }
    for (var nth = params.steps; nth > 0u; nth--) {
        enter(nth - 1u);
        let rows = rows_of(first, step.count);
        workgroupBarrier();
        if KEPT_TERMS == 0u {
            sums_backward(local);
        }
        #unroll q 0..KEPT_ROWS
        let gate{q} = row{q} % (3u * UNITS) / UNITS;
        #unroll n 0..TILE
        var a{q}_{n} = vec4f();
        #end
        #unroll k 0..KEPT_TERMS
        #unroll n 0..TILE
        a{q}_{n} += four_weights(w{q}_{k}) * terms_at(({n}u * 3u + gate{q}) * TERMS_ROW + 4u * {k}u);
        #end
        #end
        if row{q} < 3u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 3u * TERMS_ROW + {n}u * 3u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * 3u * TERMS_ROW + n * 3u * PADDED;
            var product = 0.0;
            if first + n < step.next_count {
                product = memory[sums + sum_of(0u, 3u, j)] + memory[sums + sum_of(1u, 3u, j)] + memory[sums + sum_of(2u, 3u, j)];
            }
            store_backward(first + n, j, product);
            let terms = n * 3u * TERMS_ROW + j;
            memory[terms + 0u * TERMS_ROW] = handed_back.x;
            memory[terms + 1u * TERMS_ROW] = handed_back.y;
            memory[terms + 2u * TERMS_ROW] = handed_back.z;
        }
    }
}

// What `quads` asks of a cell: a quad is a unit with its three gates. Behind them is a zero, or with
// STREAM the third gate of x, since the reset gate is applied to that of h alone.

@group(0) @binding(3) var<storage, read> weight_quads: array<FourWeights>;
@group(0) @binding(4) var<storage, read> weight_quads_back: array<FourWeights>;

const GATES: u32 = 3u;
const QUAD_UNITS: u32 = 1u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, vec3f(0.0, 0.0, sums.w), sums.xyz);
}

// The third block of W_hh meets dq, which stands behind dn.
fn gradient_of(term: u32) -> u32 {
    return select(term, term + step.hidden, term >= 2u * step.hidden);
}
