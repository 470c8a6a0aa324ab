// One step of a plain recurrent network:
//   h' = a(W_ih x + b_ih + W_hh h + b_hh)
//
// Reads the previous h of its sequences and the weights of its unit; writes h', y and, with
// SAVE, what the backward pass needs of the one gate.
#import sequence
#import gates

// [rows, 1, H], on entry W_ih x + b_ih; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<Gate>;
// [H, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

fn store_forward(n: u32, j: u32, streamed: f32, product: f32) {
    if n >= row_count() {
        return;
    }
    if !live(n) {
        hold_state(n, j);
        return;
    }
    let at = step.gates_start + n * step.gates_row + j;
    var input = streamed;
    if STREAM == 0u {
        input = f32(gates[at]);
    }
    let pre = input + product + bias_hh[bias_start() + j];
    let value = gate(ACTIVATION_0, p0(), pre);
    store_state(n, j, value);
    if SAVE != 0u {
        gates[at] = Gate(kept(pre, value));
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
    var a = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        a += x * weight_hh_t[weights + k * hidden];
    }
    store_forward(n, j, input.x, a.x);
    store_forward(n + 1u, j, input.y, a.y);
    store_forward(n + 2u, j, input.z, a.z);
    store_forward(n + 3u, j, input.w, a.w);
}

// What `sequence` reads: W_hh in blocks.
@group(0) @binding(3) var<storage, read> weight_blocks: array<Weight>;
@group(0) @binding(3) var<storage, read> weight_blocks_back: array<Weight>;

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh_t(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 1u * PADDED {
        let at = weights_of(row, 1u);
        for (var i = 0u; i < 4u; i++) {
            let k = 4u * nth + i;
            if k < HIDDEN {
                w = with_block_weight(w, i, at + k * 1u * UNITS);
            }
        }
    }
    return w;
}

// The sums of a step with weights that are not kept.
fn sums_forward(local: u32) {
    for (var r = local; r < 1u * PADDED; r += THREADS) {
        let weights = weights_of(r, 1u);
        for (var n = 0u; n < TILE; n++) {
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[n * TERMS_ROW + k] * block_weight(weights + k * 1u * UNITS);
            }
            memory[TILE * TERMS_ROW + n * 1u * PADDED + r] = sum;
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
        if row{q} < 1u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 1u * TERMS_ROW + {n}u * 1u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * TERMS_ROW + n * 1u * PADDED;
            store_forward(first + n, j, 0.0, memory[sums + j]);
            memory[n * TERMS_ROW + j] = handed;
        }
    }
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

// The gradient that `store_backward` found last.
var<private> handed_back: f32;

fn store_backward(n: u32, j: u32, product: f32) {
    if n >= step.count {
        return;
    }
    let dh = state_gradient(n, j, product);
    let unit = dstate_start() + n * step.hidden + j;
    let to = step.dgates_start + n * step.dgates_row + j;
    if !live(n) {
        dgates[to] = 0.0;
        handed_back = 0.0;
        dstate[unit] = dh;
        return;
    }
    let kept = f32(saved_gates[step.gates_start + n * step.gates_row + j]);
    let value = gate_value(ACTIVATION_0, p0(), kept);
    handed_back = dh * gate_slope(ACTIVATION_0, p0(), kept, value);
    dgates[to] = handed_back;
    dstate[unit] = 0.0;
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

// Four weights of a sum; those behind the last term are 0, as are all behind the last sum.
fn four_weight_hh(row: u32, nth: u32) -> FourWeights {
    var w = FourWeights();
    if row < 1u * PADDED {
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
    for (var r = local; r < 1u * PADDED; r += THREADS) {
        let weights = weights_back(r);
        let gate = r % (1u * UNITS) / UNITS;
        for (var n = 0u; n < TILE; n++) {
            let terms = (n * 1u + gate) * TERMS_ROW;
            var sum = 0.0;
            for (var k = 0u; k < HIDDEN; k++) {
                sum += memory[terms + k] * block_weight_back(weights + k * UNITS);
            }
            memory[TILE * 1u * TERMS_ROW + n * 1u * PADDED + r] = sum;
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
    for (var i = local; i < after * 1u * HIDDEN; i += THREADS) {
        let n = i / (1u * HIDDEN);
        let gate = i / HIDDEN % 1u;
        let source = step.dgates_next + (first + n) * step.dgates_row + gate * HIDDEN;
        memory[(n * 1u + gate) * TERMS_ROW + i % HIDDEN] = dgates[source + i % HIDDEN];
    }
    for (var nth = params.steps; nth > 0u; nth--) {
        enter(nth - 1u);
        let rows = rows_of(first, step.count);
        workgroupBarrier();
        if KEPT_TERMS == 0u {
            sums_backward(local);
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
        if row{q} < 1u * PADDED {
            #unroll n 0..TILE
            memory[TILE * 1u * TERMS_ROW + {n}u * 1u * PADDED + row{q}] = sum_up(a{q}_{n});
            #end
        }
        #end
        workgroupBarrier();
        for (var i = local; i < rows * HIDDEN; i += THREADS) {
            let n = i / HIDDEN;
            let j = i % HIDDEN;
            let sums = TILE * TERMS_ROW + n * 1u * PADDED;
            var product = 0.0;
            if first + n < step.next_count {
                product = memory[sums + j];
            }
            store_backward(first + n, j, product);
            let terms = n * 1u * TERMS_ROW + j;
            memory[terms + 0u * TERMS_ROW] = handed_back;
        }
    }
}

// What `quads` asks of a cell: a quad is four units.

@group(0) @binding(3) var<storage, read> weight_quads: array<FourWeights>;
// `weight_hh` of the step back.
@group(0) @binding(3) var<storage, read> weight_quads_back: array<FourWeights>;

const GATES: u32 = 1u;
const QUAD_UNITS: u32 = 4u;

fn finish_unit(n: u32, unit: u32, sums: vec4f) {
    store_forward(n, unit, 0.0, sums[unit % 4u]);
}

fn gradient_of(term: u32) -> u32 {
    return term;
}
