// destination[to + c * rows + r] = source[r, c] for a dense matrix of rows x cols.
// A workgroup of 16 x 16 stages one tile, so that both reading and writing run
// along rows; the 17th column keeps the columns of the tile in different banks.

const TILE: u32 = 16u;

struct Params {
    rows: u32,
    cols: u32,
    to: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;

var<workgroup> tile: array<f32, TILE * (TILE + 1u)>;

@compute @workgroup_size(TILE, TILE)
fn transpose(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_id) local: vec3u,
) {
    let r = group.y * TILE + local.y;
    let c = group.x * TILE + local.x;
    if r < params.rows && c < params.cols {
        tile[local.y * (TILE + 1u) + local.x] = source[r * params.cols + c];
    }
    workgroupBarrier();
    let tr = group.x * TILE + local.y;
    let tc = group.y * TILE + local.x;
    if tr < params.cols && tc < params.rows {
        destination[params.to + tr * params.rows + tc] = tile[local.x * (TILE + 1u) + local.y];
    }
}
