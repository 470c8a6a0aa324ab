// Packs weights into blocks of units, so that those who own a block read it in one piece:
//   destination[start + ((b * all + first + k) * G + g) * U + u] =
//       source[gate * row_g + (b * U + u) * row_u + k * row_k]
// where gate is g, or g - 1 behind the place that no gate has; 0 in that place and where b * U + u lies
// past the last unit. One invocation per element; with HALF per word of two, which are neighbours in the
// destination, since G * U is even.
#import flat

const WORKGROUP: u32 = 64u;
// 1: the destination holds 16-bit floats, two to a word.
const HALF: u32 = 0u;
// 1: it holds floats, but each is the nearest 16-bit float.
const ROUND: u32 = 0u;

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
    // Where the blocks start in the destination.
    start: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
#if HALF
@group(0) @binding(2) var<storage, read_write> destination: array<u32>;
#else
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;
#end

// The value of element `at` of those that are written.
fn packed(at: u32) -> f32 {
    let g = at / params.u % params.g;
    let k = at / (params.u * params.g) % params.k;
    let block = at / (params.u * params.g * params.k);
    let unit = block * params.u + at % params.u;
    if unit < params.units && g != params.empty {
        let gate = select(g, g - 1u, g > params.empty);
        return source[gate * params.row_g + unit * params.row_u + k * params.row_k];
    }
    return 0.0;
}

// And its place.
fn place(at: u32) -> u32 {
    let width = params.u * params.g;
    let block = at / (width * params.k);
    return params.start + (block * params.all + params.first + at / width % params.k) * width + at % width;
}

// The bits of the nearest 16-bit float, of two the even one. By integers, since `pack2x16float` may
// round up or down as it likes, and all devices are to compute with the same weights.
fn half_bits(x: f32) -> u32 {
    let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    if bits > 0x7f800000u {
        return sign | 0x7e00u;
    }
    // From 65520 on infinity is nearest.
    if bits >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    // From 2^-14 on the exponent is 112 less, and 13 bits of the fraction go.
    if bits >= 0x38800000u {
        return sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13u) & 1u)) >> 13u);
    }
    // Below are multiples of 2^-24; less than half of it is 0.
    if bits < 0x33000000u {
        return sign;
    }
    let fraction = (bits & 0x7fffffu) | 0x800000u;
    let cut = 126u - (bits >> 23u);
    let whole = fraction >> cut;
    let rest = fraction - (whole << cut);
    let middle = 1u << (cut - 1u);
    return sign | (whole + select(0u, 1u, rest > middle || (rest == middle && whole % 2u == 1u)));
}

@compute @workgroup_size(WORKGROUP)
fn pack(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = flat_index(group, groups, local, WORKGROUP);
#if ROUND
    if index < params.len {
        destination[place(index)] = unpack2x16float(half_bits(packed(index))).x;
    }
#else
#if HALF
    let at = 2u * index;
    if at < params.len {
        destination[place(at) / 2u] = half_bits(packed(at)) | (half_bits(packed(at + 1u)) << 16u);
    }
#else
    if index < params.len {
        destination[place(index)] = packed(index);
    }
#end
#end
}
