// Packs weights into blocks of units, so that those who own a block read it in one piece:
//   destination[((b * all + first + k) * G + g) * U + u] =
//       source[gate * row_g + (b * U + u) * row_u + k * row_k]
// where gate is g, or g - 1 behind the place that no gate has; 0 in that place and where b * U + u lies
// past the last unit. One invocation per element.
#import flat

const WORKGROUP: u32 = 64u;

struct Params {
    // Elements that are written, K, G and U.
    len: u32,
    k: u32,
    g: u32,
    u: u32,
    // How many units there are, the place that no gate has, and the distances in the source.
    units: u32,
    empty: u32,
    row_g: u32,
    row_u: u32,
    row_k: u32,
    // Terms of a block in the destination, and the place of the first that is packed here.
    all: u32,
    first: u32,
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
    let block = at / (params.u * params.g * params.k);
    let unit = block * params.u + lane;
    var value = 0.0;
    if unit < params.units && g != params.empty {
        let gate = select(g, g - 1u, g > params.empty);
        value = source[gate * params.row_g + unit * params.row_u + k * params.row_k];
    }
    let term = block * params.all + params.first + k;
    destination[(term * params.g + g) * params.u + lane] = value;
}
