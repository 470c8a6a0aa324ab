// Scales all gradients down together where their norm is too large.
//   factor  result[0] = norm = sqrt(sum of squares[i])
//           result[1] = min(1, max_norm / (norm + 1e-6)), NaN where the norm is NaN
//   scale   gradient[i] *= measured[1], where measured is the result of factor
#import flat

const WORKGROUP: u32 = 64u;

struct FactorParams {
    // How many sums of squares there are.
    count: u32,
    max_norm: f32,
}

@group(0) @binding(0) var<uniform> factor_params: FactorParams;
@group(0) @binding(1) var<storage, read> squares: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

// The one invocation adds in order; there is one term for each tensor of weights.
@compute @workgroup_size(1)
fn factor() {
    var sum = 0.0;
    for (var i = 0u; i < factor_params.count; i++) {
        sum += squares[i];
    }
    let norm = sqrt(sum);
    let reach = norm + 1e-6;
    result[0] = norm;
    // Compared before the division, so that an infinite max_norm divides nothing; a NaN is not
    // below it, and is divided.
    result[1] = select(factor_params.max_norm / reach, 1.0, reach <= factor_params.max_norm);
}

struct ScaleParams {
    len: u32,
}

@group(0) @binding(0) var<uniform> scale_params: ScaleParams;
@group(0) @binding(1) var<storage, read> measured: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

// One invocation per element.
@compute @workgroup_size(WORKGROUP)
fn scale(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i < scale_params.len {
        gradient[i] *= measured[1];
    }
}
