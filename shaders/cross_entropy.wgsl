// The cross-entropy of softmax(logits) and one target per row, averaged over the targets that
// are not IGNORE.
//   count  number[0] = how many such targets there are
//   rows   row_loss[m] = (log(sum of exp(logits[m, :])) - logits[m, target]) / counted
//          with GRADIENT: logits[m, :] = (softmax(logits[m, :]) - onehot(target)) / counted
// An ignored row gives 0 in both. A target outside the vocabulary, or a NaN among the logits,
// gives NaN.
#import flat

// 1: rows replaces the logits by their gradient.
const GRADIENT: u32 = 0u;

const WORKGROUP: u32 = 128u;
const IGNORE: u32 = 0xffffffffu;
// What a maximum starts from.
const LOWEST: f32 = -3.4028234e+38;

struct Params {
    // M targets, V logits for each.
    rows: u32,
    vocabulary: u32,
    // What a target outside the vocabulary gives. The text cannot say it: a NaN is no constant in
    // WGSL.
    nan: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> number: array<f32>;

var<workgroup> counts: array<u32, WORKGROUP>;

// The one workgroup counts every 128th target in each invocation; a tree joins the counts.
@compute @workgroup_size(WORKGROUP)
fn count(@builtin(local_invocation_index) local: u32) {
    var sum = 0u;
    for (var m = local; m < params.rows; m += WORKGROUP) {
        sum += select(1u, 0u, targets[m] == IGNORE);
    }
    counts[local] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if local < half {
            counts[local] += counts[local + half];
        }
        workgroupBarrier();
    }
    if local == 0u {
        number[0] = f32(counts[0]);
    }
}

@group(0) @binding(2) var<storage, read> counted: array<f32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;
@group(0) @binding(4) var<storage, read_write> row_loss: array<f32>;

var<workgroup> partial: array<f32, WORKGROUP>;

// The gradient of a whole row is one value, and so is its loss.
fn fill_row(row: u32, local: u32, value: f32) {
    if GRADIENT != 0u {
        for (var j = local; j < params.vocabulary; j += WORKGROUP) {
            logits[row * params.vocabulary + j] = value;
        }
    }
    if local == 0u {
        row_loss[row] = value;
    }
}

// A workgroup owns one row; each invocation serves every 128th logit of it, three times: for the
// maximum, for the sum of exponentials, and for the gradient.
@compute @workgroup_size(WORKGROUP)
fn rows(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = flat_index(group, groups, 0u, 1u);
    if row >= params.rows {
        return;
    }
    let label = targets[row];
    if label == IGNORE {
        fill_row(row, local, 0.0);
        return;
    }
    if label >= params.vocabulary {
        fill_row(row, local, params.nan);
        return;
    }
    let start = row * params.vocabulary;
    // Before any logit is replaced.
    let at_label = logits[start + label];

    // A NaN is not found here; it comes out of the sum below.
    var largest = LOWEST;
    for (var j = local; j < params.vocabulary; j += WORKGROUP) {
        let x = logits[start + j];
        largest = select(largest, x, x > largest);
    }
    partial[local] = largest;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if local < half {
            let other = partial[local + half];
            partial[local] = select(partial[local], other, other > partial[local]);
        }
        workgroupBarrier();
    }
    largest = partial[0];
    // All have read the maximum before the sums take its place.
    workgroupBarrier();

    var sum = 0.0;
    for (var j = local; j < params.vocabulary; j += WORKGROUP) {
        sum += exp(logits[start + j] - largest);
    }
    partial[local] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if local < half {
            partial[local] += partial[local + half];
        }
        workgroupBarrier();
    }
    sum = partial[0];

    let n = counted[0];
    if local == 0u {
        row_loss[row] = (log(sum) + (largest - at_label)) / n;
    }
    if GRADIENT != 0u {
        for (var j = local; j < params.vocabulary; j += WORKGROUP) {
            let p = exp(logits[start + j] - largest) / sum;
            logits[start + j] = (p - select(0.0, 1.0, j == label)) / n;
        }
    }
}
