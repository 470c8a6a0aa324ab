// Packs recurrent weights into blocks of units, so that those who own a block read it in one piece:
//   destination[((b * K + k) * G + g) * U + u] = source[g * row_g + (b * U + u) * row_u + k * row_k]
// and 0 where b * U + u lies past the last unit. One invocation per element.
#import flat

const WORKGROUP: u32 = 64u;

struct Params {
    // Elements of the destination, K, G and U.
    len: u32,
    k: u32,
    g: u32,
    u: u32,
    // How many units there are, and the distances in the source.
    units: u32,
    row_g: u32,
    row_u: u32,
    row_k: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn pack(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = flat_index(group, groups, local, WORKGROUP);
    if at >= params.len {
        return;
    }
    let lane = at % params.u;
    let g = at / params.u % params.g;
    let k = at / (params.u * params.g) % params.k;
    let unit = at / (params.u * params.g * params.k) * params.u + lane;
    var value = 0.0;
    if unit < params.units {
        value = source[g * params.row_g + unit * params.row_u + k * params.row_k];
    }
    destination[at] = value;
}
