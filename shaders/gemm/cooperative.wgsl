// A product in cooperative matrices, which the invocations of a subgroup multiply together, on hardware
// made for it where there is such: of 16-bit floats, to which both factors are rounded, with sums in
// f32.
//
// A workgroup owns a tile of 32 x 32 of C. For every SIZE values of k its invocations bring the rows of A
// and the columns of B to workgroup memory, rounded and with zeros for what is not there, so that the
// matrices have any strides and sizes; each subgroup then takes all of the tile. With more than one
// subgroup, which a device may make of a workgroup, they compute and store the same.
enable f16;
enable wgpu_cooperative_matrix;
#import gemm

const THREADS: u32 = 32u;
const TILE: u32 = 32u;
// Matrices along a side of the tile, and rows and columns of a matrix: 8 or, with LARGE, 16.
const SIDE: u32 = 4u;
const SIZE: u32 = TILE / SIDE;
const LARGE: u32 = 0u;
#if LARGE
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
#end

// [TILE, SIZE] and [SIZE, TILE], for the larger SIZE, and [TILE, TILE]
var<workgroup> left: array<f16, TILE * 16u>;
var<workgroup> right: array<f16, TILE * 16u>;
var<workgroup> sums: array<f32, TILE * TILE>;

@compute @workgroup_size(THREADS)
fn cooperative(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * TILE;
    let col = group.x * TILE;
    let end = end_of(group.z);
    for (var i = local; i < TILE * TILE; i += THREADS) {
        sums[i] = 0.0;
    }
    workgroupBarrier();
#unroll i 0..SIDE
#unroll j 0..SIDE
    var c{i}{j} = coopLoadT<Sums>(&sums[0], TILE);
#end
#end
    for (var k = group.z * product.chunk; k < end; k += SIZE) {
        for (var i = local; i < TILE * SIZE; i += THREADS) {
            let at = i % SIZE;
            let m = row + i / SIZE;
            var value = 0.0;
            if m < product.m && k + at < end {
                value = a_buffer[a_place(m, k + at)];
            }
            left[i] = f16(value);
        }
        for (var i = local; i < TILE * SIZE; i += THREADS) {
            let at = i / TILE;
            let n = col + i % TILE;
            var value = 0.0;
            if n < product.n && k + at < end {
                value = b_at(b_place(k + at, n));
            }
            right[i] = f16(value);
        }
        workgroupBarrier();
#unroll i 0..SIDE
        let a{i} = coopLoadT<Left>(&left[{i}u * SIZE * SIZE], SIZE);
        let b{i} = coopLoadT<Right>(&right[{i}u * SIZE], TILE);
#end
#unroll i 0..SIDE
#unroll j 0..SIDE
        c{i}{j} = coopMultiplyAdd(a{i}, b{j}, c{i}{j});
#end
#end
        workgroupBarrier();
    }
#unroll i 0..SIDE
#unroll j 0..SIDE
    coopStoreT(c{i}{j}, &sums[{i}u * SIZE * TILE + {j}u * SIZE], TILE);
#end
#end
    workgroupBarrier();
    for (var i = local; i < TILE * TILE / 4u; i += THREADS) {
        let at = 4u * i;
        let four = vec4f(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]);
        store(row + at / TILE, col + at % TILE, group.z, four);
    }
}
