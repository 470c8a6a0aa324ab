// A product in tiles of workgroup memory. A workgroup of SIDE x SIDE owns a square
// tile of C, of BLOCKS x BLOCKS blocks of 4 x 4 for each invocation: TILE = 4 * BLOCKS
// * SIDE. It stages DEPTH values of k at a time, each invocation one block: the first
// half of them of A, the others of B, which makes DEPTH = 2 * SIDE / BLOCKS. Blocks of
// the next DEPTH are read while these are multiplied.
//
// SIDE, BLOCKS, DEPTH and NESTED stand before this text; the inner loop is written out, so
// that its bounds need no check at run time.
//
// Staged are vec4s of four rows of A, or columns of B, at one k. Neighbours read along
// whichever axis is dense; where that is k, they write to rows of the tile which are
// DEPTH apart, and the exchange of places by `place` keeps them in different banks.
#import gemm

// vec4s of one k, blocks along k, and what all of one operand take.
const WIDTH: u32 = BLOCKS * SIDE;
const DEEP: u32 = DEPTH / 4u;

// Of A, then of B. In arrays of arrays a number that is known needs no check at run time: on an NVIDIA H200
// tiles of 128 x 128 were 6 to 8 % faster so, and those of 64 x 64 up to 20 % slower.
// There, microseconds of large products: tiles of 64 x 64 took 578 by 64 invocations with BLOCKS 2, and 217 by 256
// with one; with a second place to stage in, and so one barrier, they took 215 instead of 187, and tiles of
// 128 x 128 took 182 instead of 164.
#if NESTED
var<workgroup> staged: array<array<array<vec4f, WIDTH>, DEPTH>, 2>;
#else
const HALF: u32 = DEPTH * WIDTH;
var<workgroup> staged: array<vec4f, 2u * HALF>;
#end

// Where the vec4 `block` of a k stands among its WIDTH.
fn place(block: u32, k: u32) -> u32 {
    return block ^ (k / 4u * (8u / DEEP));
}

// A block of A or of B; zeros from the end of k on.
fn operand(of_a: bool, at: u32, k: u32, end: u32) -> mat4x4f {
    var block = mat4x4f();
    if k + 4u <= end {
        if of_a {
            block = a_block(at, k);
        } else {
            block = b_block(k, at);
        }
    }
#if REST
    if k + 4u > end {
#unroll q 3
        if k + {q}u < end {
            if of_a {
                block[{q}] = a_rows(at, k + {q}u);
            } else {
                block[{q}] = b_cols(k + {q}u, at);
            }
        }
#end
    }
#end
    return block;
}

@compute @workgroup_size(SIDE * SIDE)
fn tile(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * (4u * WIDTH);
    let col = group.x * (4u * WIDTH);
    let end = end_of(group.z);

    // Which block this invocation stages.
    let part = local % (SIDE * SIDE / 2u);
    let of_a = local < SIDE * SIDE / 2u;
    let a_along_k = A_VEC4 == 1u || (A_VEC4 == 0u && product.a_col == 1u);
    let b_along_k = B_VEC4 == 1u || (B_VEC4 == 0u && product.b_row == 1u);
    let along_k = select(b_along_k, a_along_k, of_a);
    let deep = select(part / WIDTH, part % DEEP, along_k) * 4u;
    let block = select(part % WIDTH, part / DEEP, along_k);
    let at = select(col, row, of_a) + 4u * block;
    let half = select(1u, 0u, of_a);
#if NESTED
    let to = place(block, deep);
#else
    let to = half * HALF + deep * WIDTH + place(block, deep);
#end

    let x = local % SIDE;
    let y = local / SIDE;
#unroll u BLOCKS
#unroll v BLOCKS
#unroll i 4
    var c{u}{i}{v} = vec4f();
#end
#end
#end
    var k = group.z * product.chunk;
    var next = operand(of_a, at, k + deep, end);
    for (; k < end; k += DEPTH) {
#unroll q 4
#if NESTED
        staged[half][deep + {q}u][to] = next[{q}];
#else
        staged[to + {q}u * WIDTH] = next[{q}];
#end
#end
        workgroupBarrier();
        if k + DEPTH < end {
            next = operand(of_a, at, k + DEPTH + deep, end);
        }
#unroll q DEPTH
        {
#unroll u BLOCKS
#if NESTED
            let a{u} = staged[0][{q}][place(y + {u}u * SIDE, {q}u)];
            let b{u} = staged[1][{q}][place(x + {u}u * SIDE, {q}u)];
#else
            let a{u} = staged[{q}u * WIDTH + place(y + {u}u * SIDE, {q}u)];
            let b{u} = staged[HALF + {q}u * WIDTH + place(x + {u}u * SIDE, {q}u)];
#end
#end
#unroll u BLOCKS
#unroll v BLOCKS
#unroll i 4
            c{u}{i}{v} += a{u}[{i}] * b{v};
#end
#end
#end
        }
#end
        workgroupBarrier();
    }

#unroll u BLOCKS
#unroll v BLOCKS
#unroll i 4
    store(row + 4u * (y + {u}u * SIDE) + {i}u, col + 4u * (x + {v}u * SIDE), group.z, c{u}{i}{v});
#end
#end
#end
}
