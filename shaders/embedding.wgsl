// Rows of a table by token id, and the gradient of the table.
//   gather   output[m, e] = table[ids[m], e], and NaN where ids[m] is not below V
//   scatter  dtable[v, e] = sum of doutput[m, e] over the m with ids[m] = v, in ascending m; with
//            `add` onto what it holds, for the ids behind those of an earlier dispatch
#import flat

const WORKGROUP: u32 = 64u;
// The most rows of the table that one workgroup of scatter owns.
const ROWS: u32 = 16u;
// Ids that one invocation compares at a time: the bits of a word.
const BITS: u32 = 32u;

struct Params {
    // M ids, V rows of E columns in the table; scatter takes those from `first` to before `tokens`.
    tokens: u32,
    vocabulary: u32,
    columns: u32,
    // scatter: the rows that one workgroup owns, at most ROWS.
    rows_each: u32,
    // gather: what an id outside the table gives. The text cannot say it: a NaN is no constant in WGSL.
    nan: f32,
    first: u32,
    add: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

// One invocation per element of the output.
@compute @workgroup_size(WORKGROUP)
fn gather(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i >= params.tokens * params.columns {
        return;
    }
    let id = ids[i / params.columns];
    if id < params.vocabulary {
        output[i] = table[id * params.columns + i % params.columns];
    } else {
        output[i] = params.nan;
    }
}

@group(0) @binding(2) var<storage, read> doutput: array<f32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;

// Bit b of word w: whether id 32 w + b of the present block of ids is one of these rows.
var<workgroup> hits: array<u32, WORKGROUP>;
// Sums by row and column; an invocation touches its own column alone.
var<workgroup> sums: array<f32, ROWS * WORKGROUP>;

// A workgroup owns 64 columns of a few rows of the table, an invocation one column. Together they
// look through 2,048 ids at a time; then each adds the rows that were found, in their order, so
// that the sums need no atomics and come out the same every time.
@compute @workgroup_size(WORKGROUP)
fn scatter(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let blocks = (params.columns + WORKGROUP - 1u) / WORKGROUP;
    let index = flat_index(group, groups, 0u, 1u);
    let row = index / blocks * params.rows_each;
    if row >= params.vocabulary {
        return;
    }
    let rows = min(params.rows_each, params.vocabulary - row);
    let column = index % blocks * WORKGROUP + local;
    for (var r = 0u; r < rows; r++) {
        var sum = 0.0;
        if params.add != 0u && column < params.columns {
            sum = dtable[(row + r) * params.columns + column];
        }
        sums[r * WORKGROUP + local] = sum;
    }
    for (var first = params.first; first < params.tokens; first += WORKGROUP * BITS) {
        let start = first + local * BITS;
        var found = 0u;
        for (var bit = 0u; bit < BITS && start + bit < params.tokens; bit++) {
            // Below `row` the difference wraps to a large number.
            found |= select(0u, 1u << bit, ids[start + bit] - row < rows);
        }
        hits[local] = found;
        workgroupBarrier();
        if column < params.columns {
            for (var word = 0u; word < WORKGROUP; word++) {
                var left = hits[word];
                while left != 0u {
                    let m = first + word * BITS + firstTrailingBit(left);
                    let sum = (ids[m] - row) * WORKGROUP + local;
                    sums[sum] += doutput[m * params.columns + column];
                    // Clears the lowest bit that is set.
                    left &= left - 1u;
                }
            }
        }
        workgroupBarrier();
    }
    if column < params.columns {
        for (var r = 0u; r < rows; r++) {
            dtable[(row + r) * params.columns + column] = sums[r * WORKGROUP + local];
        }
    }
}
