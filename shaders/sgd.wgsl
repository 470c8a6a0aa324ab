// Stochastic gradient descent with momentum, as PyTorch's SGD.
//   velocity[i] = momentum * velocity[i] + (gradient[i] + weight_decay * weight[i])
//   weight[i] -= rate * velocity[i]
// With momentum = 0 the old velocity is not read. One invocation per element.
#import flat

const WORKGROUP: u32 = 64u;

struct Params {
    len: u32,
    momentum: f32,
    weight_decay: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> weight: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> velocity: array<f32>;
@group(0) @binding(4) var<storage, read> rate: array<f32>;

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
    let w = weight[i];
    var v = gradient[i] + params.weight_decay * w;
    if params.momentum != 0.0 {
        v += params.momentum * velocity[i];
    }
    velocity[i] = v;
    weight[i] = w - rate[0] * v;
}
