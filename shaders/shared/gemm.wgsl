// What the forms of a product share: its parameters and buffers, how blocks of 4 x 4
// are read, and what happens to a sum before it is stored.
//
//   C = activation(alpha * A * B + beta * C + bias), accumulated in f32
//
// A is m x k, B is k x n, C is m x n; each has a start and two strides, so that
// transposes and parts of larger buffers need no copy. With beta = 0 the old C is not
// read. Rows and columns past the last are read as the last again, and their results
// not stored; past the last k nothing is read, since what lies there may be NaN.
//
// A workgroup with z = p sums the p-th `chunk` of k only and stores `c_part` elements
// further on for each p: with more than one chunk C is a scratch of partial sums.
#import activations

// How A is bound: 0 as numbers, 1 as vec4s along k, 2 as vec4s along its rows. For
// vec4s its start, its other stride and its length along them are multiples of 4.
const A_VEC4: u32 = 0u;
// The same for B: 1 as vec4s along k, 2 as vec4s along its columns.
const B_VEC4: u32 = 0u;
// 1: B holds 16-bit floats, two to a word; see `half`.
const B_HALF: u32 = 0u;
// 1: C is bound as vec4s, which lie along its columns.
const C_VEC4: u32 = 0u;
// 1: C holds 16-bit floats.
const C_HALF: u32 = 0u;
#if C_HALF
enable f16;
alias Stored = f16;
#else
alias Stored = f32;
#end
// 1: k is no multiple of 4; then no vec4s lie along k.
const REST: u32 = 1u;
// 0 none, 1 a number for each column, 2 a number for each row.
const BIAS: u32 = 1u;
// 0 none, 1 sigmoid, 2 tanh, 3 relu.
const ACTIVATION: u32 = 0u;

struct Product {
    m: u32,
    n: u32,
    k: u32,
    a_start: u32,
    a_row: u32,
    a_col: u32,
    b_start: u32,
    b_row: u32,
    b_col: u32,
    c_start: u32,
    c_row: u32,
    c_col: u32,
    alpha: f32,
    beta: f32,
    chunk: u32,
    c_part: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> product: Product;
#if A_VEC4
@group(0) @binding(1) var<storage, read> a_buffer: array<vec4f>;
#else
@group(0) @binding(1) var<storage, read> a_buffer: array<f32>;
#end
@group(0) @binding(2) var<storage, read> bias: array<f32>;
#if C_VEC4
@group(0) @binding(3) var<storage, read_write> c_buffer: array<vec4<Stored>>;
#else
@group(0) @binding(3) var<storage, read_write> c_buffer: array<Stored>;
#end
#if B_HALF
#if B_VEC4
@group(0) @binding(4) var<storage, read> b_buffer: array<vec2u>;
#else
@group(0) @binding(4) var<storage, read> b_buffer: array<u32>;
#end
#else
#if B_VEC4
@group(0) @binding(4) var<storage, read> b_buffer: array<vec4f>;
#else
@group(0) @binding(4) var<storage, read> b_buffer: array<f32>;
#end
#end

// Four elements of B that lie side by side, or one of them, from their place on.
#if B_VEC4
fn b_at(place: u32) -> vec4f {
#if B_HALF
    let words = b_buffer[place / 4u];
    return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
#else
    return b_buffer[place / 4u];
#end
}
#else
fn b_at(place: u32) -> f32 {
#if B_HALF
    let both = unpack2x16float(b_buffer[place / 2u]);
    return select(both.x, both.y, place % 2u == 1u);
#else
    return b_buffer[place];
#end
}
#end

// Where a part of k ends.
fn end_of(part: u32) -> u32 {
    return min((part + 1u) * product.chunk, product.k);
}

fn a_place(row: u32, k: u32) -> u32 {
    return product.a_start + row * product.a_row + k * product.a_col;
}

fn b_place(k: u32, col: u32) -> u32 {
    return product.b_start + k * product.b_row + col * product.b_col;
}

// Four rows of A from `row` on at one k, which lie side by side or are no vec4s.
fn a_rows(row: u32, k: u32) -> vec4f {
#if A_VEC4
    return a_buffer[a_place(min(row, product.m - 4u), k) / 4u];
#else
    let last = product.m - 1u;
    return vec4f(
        a_buffer[a_place(min(row, last), k)],
        a_buffer[a_place(min(row + 1u, last), k)],
        a_buffer[a_place(min(row + 2u, last), k)],
        a_buffer[a_place(min(row + 3u, last), k)],
    );
#end
}

// Four columns of B from `col` on at one k, which lie side by side or are no vec4s.
fn b_cols(k: u32, col: u32) -> vec4f {
#if B_VEC4
    return b_at(b_place(k, min(col, product.n - 4u)));
#else
    let last = product.n - 1u;
    return vec4f(
        b_at(b_place(k, min(col, last))),
        b_at(b_place(k, min(col + 1u, last))),
        b_at(b_place(k, min(col + 2u, last))),
        b_at(b_place(k, min(col + 3u, last))),
    );
#end
}

// Four rows of A at four k, all of which exist: a column of the block for each k.
fn a_block(row: u32, k: u32) -> mat4x4f {
#if A_VEC4
    if A_VEC4 == 1u {
        let last = product.m - 1u;
        return transpose(mat4x4f(
            a_buffer[a_place(min(row, last), k) / 4u],
            a_buffer[a_place(min(row + 1u, last), k) / 4u],
            a_buffer[a_place(min(row + 2u, last), k) / 4u],
            a_buffer[a_place(min(row + 3u, last), k) / 4u],
        ));
    }
#end
    return mat4x4f(a_rows(row, k), a_rows(row, k + 1u), a_rows(row, k + 2u), a_rows(row, k + 3u));
}

// Four columns of B at four k, all of which exist: a column of the block for each k.
fn b_block(k: u32, col: u32) -> mat4x4f {
#if B_VEC4
    if B_VEC4 == 1u {
        let last = product.n - 1u;
        return transpose(mat4x4f(
            b_at(b_place(k, min(col, last))),
            b_at(b_place(k, min(col + 1u, last))),
            b_at(b_place(k, min(col + 2u, last))),
            b_at(b_place(k, min(col + 3u, last))),
        ));
    }
#end
    return mat4x4f(b_cols(k, col), b_cols(k + 1u, col), b_cols(k + 2u, col), b_cols(k + 3u, col));
}

// Which of four k lie before the end.
fn known(k: u32, end: u32) -> vec4<bool> {
    return vec4u(k, k + 1u, k + 2u, k + 3u) < vec4u(end);
}

// Four k of a row of A, the first of which exists; zeros from the end on.
fn a_fours(row: u32, k: u32, end: u32) -> vec4f {
#if A_VEC4
    return a_buffer[a_place(row, k) / 4u];
#else
    let last = end - 1u;
    let fours = vec4f(
        a_buffer[a_place(row, k)],
        a_buffer[a_place(row, min(k + 1u, last))],
        a_buffer[a_place(row, min(k + 2u, last))],
        a_buffer[a_place(row, min(k + 3u, last))],
    );
    return select(vec4f(), fours, known(k, end));
#end
}

// Four k of a column of B, or of its last column; zeros from the end on.
fn b_fours(k: u32, col: u32, end: u32) -> vec4f {
    let own = min(col, product.n - 1u);
#if B_VEC4
    return b_at(b_place(k, own));
#else
    let last = end - 1u;
    let fours = vec4f(
        b_at(b_place(k, own)),
        b_at(b_place(min(k + 1u, last), own)),
        b_at(b_place(min(k + 2u, last), own)),
        b_at(b_place(min(k + 3u, last), own)),
    );
    return select(vec4f(), fours, known(k, end));
#end
}

fn activate(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return sigmoid(x); }
        case 2u: { return tanh_safe(x); }
        case 3u: { return relu(x); }
        default: { return x; }
    }
}

fn with_bias(row: u32, col: u32, value: f32) -> f32 {
    switch BIAS {
        case 1u: { return value + bias[col]; }
        case 2u: { return value + bias[row]; }
        default: { return value; }
    }
}

fn c_place(row: u32, col: u32, part: u32) -> u32 {
    return product.c_start + part * product.c_part + row * product.c_row + col * product.c_col;
}

// Stores the sums of four columns of a row.
#if C_VEC4
fn store(row: u32, col: u32, part: u32, sums: vec4f) {
    if row >= product.m || col >= product.n {
        return;
    }
    let at = c_place(row, col, part) / 4u;
    var values = product.alpha * sums;
    if product.beta != 0.0 {
        values += product.beta * vec4f(c_buffer[at]);
    }
    c_buffer[at] = vec4<Stored>(vec4f(
        activate(with_bias(row, col, values.x)),
        activate(with_bias(row, col + 1u, values.y)),
        activate(with_bias(row, col + 2u, values.z)),
        activate(with_bias(row, col + 3u, values.w)),
    ));
}
#else
fn store(row: u32, col: u32, part: u32, sums: vec4f) {
    store_one(row, col, part, sums.x);
    store_one(row, col + 1u, part, sums.y);
    store_one(row, col + 2u, part, sums.z);
    store_one(row, col + 3u, part, sums.w);
}

fn store_one(row: u32, col: u32, part: u32, sum: f32) {
    if row >= product.m || col >= product.n {
        return;
    }
    let at = c_place(row, col, part);
    var value = product.alpha * sum;
    if product.beta != 0.0 {
        value += product.beta * f32(c_buffer[at]);
    }
    c_buffer[at] = Stored(activate(with_bias(row, col, value)));
}
#end
