// Adam (Kingma and Ba 2015), and with DECOUPLED AdamW (Loshchilov and Hutter 2019), as PyTorch's.
//   Adam:   g = gradient + weight_decay * weight
//   AdamW:  g = gradient, and weight *= 1 - rate * weight_decay
//   m = beta1 * m + (1 - beta1) * g
//   v = beta2 * v + (1 - beta2) * g^2
//   weight -= rate * (m / c1) / (sqrt(v) / sqrt(c2) + epsilon), c1 = 1 - beta1^t, c2 = 1 - beta2^t
// t is the clock, from 1. One invocation per element.
#import flat

// 1: AdamW.
const DECOUPLED: u32 = 0u;

const WORKGROUP: u32 = 64u;

struct Params {
    len: u32,
    beta1: f32,
    beta2: f32,
    // 1 - beta, rounded once: a difference of rounded numbers would be off in its fifth digit.
    rest1: f32,
    rest2: f32,
    ln_beta1: f32,
    ln_beta2: f32,
    epsilon: f32,
    weight_decay: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> weight: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read> rate: array<f32>;
@group(0) @binding(6) var<storage, read> clock: array<u32>;

// 1 - exp(x) for x <= 0: near 0, where the difference would cancel, the Taylor series in x up to
// x^11 / 11!, whose next term is below 2.1e-9.
fn one_minus_exp(x: f32) -> f32 {
    if x < -1.0 {
        return 1.0 - exp(x);
    }
    var p = 1.0 + x / 11.0;
    p = 1.0 + x / 10.0 * p;
    p = 1.0 + x / 9.0 * p;
    p = 1.0 + x / 8.0 * p;
    p = 1.0 + x / 7.0 * p;
    p = 1.0 + x / 6.0 * p;
    p = 1.0 + x / 5.0 * p;
    p = 1.0 + x / 4.0 * p;
    p = 1.0 + x / 3.0 * p;
    p = 1.0 + x / 2.0 * p;
    return -x * p;
}

@compute @workgroup_size(WORKGROUP)
fn step(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i >= params.len {
        return;
    }
    let t = f32(clock[0]);
    let c1 = one_minus_exp(t * params.ln_beta1);
    let c2 = one_minus_exp(t * params.ln_beta2);

    var w = weight[i];
    var g = gradient[i];
    if DECOUPLED != 0u {
        w -= rate[0] * params.weight_decay * w;
    } else {
        g += params.weight_decay * w;
    }
    let mean = params.beta1 * m[i] + params.rest1 * g;
    let square = params.beta2 * v[i] + params.rest2 * g * g;
    m[i] = mean;
    v[i] = square;
    weight[i] = w - rate[0] * (mean / c1) / (sqrt(square) / sqrt(c2) + params.epsilon);
}
