// One step of a plain recurrent network:
//   h' = a(W_ih x + b_ih + W_hh h + b_hh)
//
// Reads the previous h of its sequences and the weights of its unit; writes h', y and, with
// SAVE, what the backward pass needs of the one gate.
#import sequence
#import gates

// [rows, 1, H], on entry W_ih x + b_ih; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<f32>;
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
        input = gates[at];
    }
    let pre = input + product + bias_hh[j];
    let value = gate(ACTIVATION_0, p0(), pre);
    store_state(n, j, value);
    if SAVE != 0u {
        gates[at] = kept(pre, value);
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
            let v = vec4f(gates[x.x + k], gates[x.y + k], gates[x.z + k], gates[x.w + k]);
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

// All steps; see `sequence`.
fn sum_forward(local: u32) {
    let size = params.hidden;
    let width = 1u * UNITS;
    for (var r = local; r < 1u * padded_units(); r += THREADS) {
        let weights = r / width * size * width + r % width;
        for (var n = 0u; n < TILE; n++) {
            let terms = n * terms_row();
            var sum = 0.0;
            for (var k = 0u; k < size; k++) {
                sum += memory[terms + k] * weight_hh_t[weights + k * width];
            }
            memory[sums_start(n, 1u, 1u) + r] = sum;
        }
    }
}

@compute @workgroup_size(THREADS)
fn sequence_forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    step = params;
    let hidden = params.hidden;
    let first = group.x * TILE;
    var held = 0u;
    for (var nth = 0u; nth < params.steps; nth++) {
        enter(nth);
        let rows = rows_of(first, step.count);
        // Sequences that begin here.
        for (var i = local; i < rows * hidden; i += THREADS) {
            let n = i / hidden;
            let j = i % hidden;
            if n >= held {
                memory[n * terms_row() + j] = h[h_before(first + n) + j];
            }
        }
        held = rows;
        workgroupBarrier();
        sum_forward(local);
        workgroupBarrier();
        for (var i = local; i < rows * hidden; i += THREADS) {
            let n = i / hidden;
            let j = i % hidden;
            let sums = sums_start(n, 1u, 1u);
            store_forward(first + n, j, 0.0, memory[sums + j]);
            memory[n * terms_row() + j] = handed;
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
@group(0) @binding(2) var<storage, read> saved_gates: array<f32>;
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
    let unit = n * step.hidden + j;
    let to = step.dgates_start + n * step.dgates_row + j;
    if !live(n) {
        dgates[to] = 0.0;
        handed_back = 0.0;
        dstate[unit] = dh;
        return;
    }
    let kept = saved_gates[step.gates_start + n * step.gates_row + j];
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

// All steps back.
fn sum_backward(local: u32) {
    let size = params.hidden;
    let width = 1u * UNITS;
    for (var r = local; r < 1u * padded_units(); r += THREADS) {
        let weights = r / width * size * width + r % width;
        let gate = r % width / UNITS;
        for (var n = 0u; n < TILE; n++) {
            let terms = (n * 1u + gate) * terms_row();
            var sum = 0.0;
            for (var k = 0u; k < size; k++) {
                sum += memory[terms + k] * weight_hh[weights + k * width];
            }
            memory[sums_start(n, 1u, 1u) + r] = sum;
        }
    }
}

@compute @workgroup_size(THREADS)
fn sequence_backward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    step = params;
    let hidden = params.hidden;
    let first = group.x * TILE;
    for (var nth = params.steps; nth > 0u; nth--) {
        enter(nth - 1u);
        let rows = rows_of(first, step.count);
        workgroupBarrier();
        sum_backward(local);
        workgroupBarrier();
        for (var i = local; i < rows * hidden; i += THREADS) {
            let n = i / hidden;
            let j = i % hidden;
            let sums = sums_start(n, 1u, 1u);
            var product = 0.0;
            if first + n < step.next_count {
                product = memory[sums + j];
            }
            store_backward(first + n, j, product);
            let terms = n * 1u * terms_row() + j;
            memory[terms + 0u * terms_row()] = handed_back;
        }
    }
}
