//! `cross_entropy`: the loss of a classifier with one target per row, and its gradient in place.
//!
//! loss = mean over m of log Σⱼ exp(logits\[m, j]) − logits\[m, target\[m]], the negative
//! log-likelihood in nats, taken over the targets that are not [`IGNORE`]; as PyTorch's
//! `cross_entropy` with `reduction='mean'`, but for a batch without any such target: that gives 0
//! here, loss and gradient, where PyTorch gives NaN.

use bytemuck::{Pod, Zeroable};

use super::{index, reduce};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::tensor::Ids;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/cross_entropy.wgsl");
const WORKGROUP: usize = 128;

/// Rounds of the loop over a tree's levels.
const TREE: u64 = WORKGROUP.ilog2() as u64 + 1;

/// The target of a row that does not count.
pub const IGNORE: u32 = u32::MAX;

/// `cross_entropy.count`: the number of targets that are not [`IGNORE`].
pub static COUNT: Kernel = Kernel {
    name: "cross_entropy.count",
    wgsl: WGSL,
    entry: "count",
    bindings: &[Binding::read("targets").uint(), Binding::write("number")],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: (WORKGROUP * 4) as u32,
    // Over every 128th target, and over the tree's levels.
    rounds: |told| {
        let rows = u64::from(told.params::<Params>()?.rows);
        Ok((rows.div_ceil(WORKGROUP as u64) + 1) + TREE)
    },
    twin: twin!(count_twin),
    sample: |[rows, cols, _], rng| {
        let mut b = Builder::new("count");
        let targets = b.uint("targets", &[rows, cols], Role::Input);
        let number = b.float("number", &[1], Role::Output);
        count(&mut b, targets, number)?;
        let values = (0..rows * cols).map(|_| [IGNORE, 0, 7][rng.below(3) as usize]);
        Ok(Sample {
            data: vec![(targets, Data::Uint(values.collect()))],
            plan: b.finish(),
        })
    },
};

/// `cross_entropy.rows`: the loss of every row, and the gradient in place of the logits.
pub static ROWS: Kernel = Kernel {
    name: "cross_entropy.rows",
    wgsl: WGSL,
    entry: "rows",
    bindings: &[
        Binding::read("targets").uint(),
        Binding::read("counted"),
        Binding::update("logits"),
        Binding::write("row_loss"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: (WORKGROUP * 4) as u32,
    // Over every 128th logit three times, and over the levels of two trees.
    rounds: |told| {
        let vocabulary = u64::from(told.params::<Params>()?.vocabulary);
        Ok(3 * (vocabulary.div_ceil(WORKGROUP as u64) + 1) + 2 * TREE)
    },
    twin: twin!(rows_twin),
    sample: rows_sample,
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    vocabulary: u32,
    nan: f32,
}

/// The arguments of [`cross_entropy`]. M is the number of targets, V the size of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy {
    /// `[…, V]`: M rows of logits; their gradient afterwards, if that is asked for.
    pub logits: BufferId,
    /// M integers below V, or [`IGNORE`].
    pub targets: BufferId,
    /// `[1]`: the mean over the targets that count, in nats.
    pub loss: BufferId,
    /// Replaces the logits by the gradient of the loss with respect to them.
    pub gradient: bool,
}

/// Adds the mean loss of all rows and, if asked for, its gradient in place of the logits.
///
/// A row whose target is [`IGNORE`] adds nothing and has the gradient 0; if all rows are such, the
/// loss is 0. Writing a target that is neither below V nor `IGNORE` to the buffer of a
/// [`Program`](crate::Program) is an error; one that a host's own commands put into the device's memory gives
/// NaN, in the loss and in its row of the gradient, and so does a NaN among the logits of a row that counts.
///
/// # Errors
/// If the logits are not M rows of the length of their last dimension, or `loss` has not one
/// element.
pub fn cross_entropy(b: &mut Builder, args: CrossEntropy) -> Result<()> {
    let CrossEntropy {
        logits,
        targets,
        loss,
        gradient,
    } = args;
    let rows = b.buffer(targets)?.len();
    let number = b.float("target count", &[1], Role::Scratch);
    let row_loss = b.float("row losses", &[rows], Role::Scratch);
    count(b, targets, number)?;
    rows_step(b, [targets, number, logits, row_loss], gradient)?;
    reduce::total(b, row_loss, loss, false)
}

fn count(b: &mut Builder, targets: BufferId, number: BufferId) -> Result<()> {
    let rows = b.buffer(targets)?.len();
    b.push(Dispatch {
        kernel: &COUNT,
        constants: &[],
        bindings: &[targets, number],
        params: Params {
            rows: index(COUNT.name, rows)?,
            vocabulary: 0,
            nan: f32::NAN,
        },
        grid: Grid::Groups([1, 1, 1]),
        cost: Cost {
            flops: 0,
            bytes: 4 * (rows + 1) as u64,
            length: 1,
        },
    })
}

fn rows_step(b: &mut Builder, bindings: [BufferId; 4], gradient: bool) -> Result<()> {
    let name = ROWS.name;
    let [targets, _, logits, _] = bindings;
    let rows = b.buffer(targets)?.len();
    let shape = &b.buffer(logits)?.shape;
    let vocabulary = shape.last().copied().unwrap_or(0);
    if shape.is_empty() || b.buffer(logits)?.len() != rows.saturating_mul(vocabulary) {
        return Err(Error::shape(name, "logits", [rows, vocabulary], shape));
    }
    index(name, rows * vocabulary)?;
    b.holds_ids(
        targets,
        Ids {
            vocabulary,
            except: Some(IGNORE),
        },
    );
    let elements = (rows * vocabulary) as u64;
    let written = if gradient { elements } else { 0 };
    b.push(Dispatch {
        kernel: &ROWS,
        constants: &[("GRADIENT", u32::from(gradient))],
        bindings: &bindings,
        params: Params {
            rows: index(name, rows)?,
            vocabulary: index(name, vocabulary)?,
            nan: f32::NAN,
        },
        // A workgroup for each row.
        grid: Grid::Flat(rows * WORKGROUP),
        cost: Cost {
            // Comparison, difference, exponential, sum; difference, exponential, two quotients.
            flops: 4 * elements + 4 * written,
            bytes: 4 * (elements + written + 2 * rows as u64 + 1),
            length: vocabulary,
        },
    })?;
    b.changed(logits);
    Ok(())
}

/// With and without the gradient, small logits and large ones by turns, every fourth target
/// ignored.
///
/// Errors are relative to the largest loss. A loss near 0 is what rounding leaves of log(1 + a
/// little), so the first row has its smallest logit as target, which keeps the largest loss above
/// log V whatever the rest is.
fn rows_sample([rows, vocabulary, variant]: [usize; 3], rng: &mut Rng) -> Result<Sample> {
    let mut b = Builder::new("rows");
    let targets = b.uint("targets", &[rows], Role::Input);
    let number = b.float("number", &[1], Role::Input);
    let logits = b.float("logits", &[rows, vocabulary], Role::Saved);
    let row_loss = b.float("row_loss", &[rows], Role::Output);
    rows_step(
        &mut b,
        [targets, number, logits, row_loss],
        variant % 2 == 1,
    )?;

    let scale = [2.0, 30.0, 1e4][rng.below(3) as usize];
    let values = rng.uniforms(rows * vocabulary, -scale, scale);
    let smallest = (0..vocabulary).min_by(|&a, &b| values[a].total_cmp(&values[b]));
    let ids: Vec<u32> = (0..rows)
        .map(|m| match (m, rng.below(4)) {
            (0, _) => smallest.unwrap_or(0) as u32,
            (_, 0) => IGNORE,
            _ => rng.below(vocabulary as u32),
        })
        .collect();
    let counted = ids.iter().filter(|&&id| id != IGNORE).count();
    Ok(Sample {
        plan: b.finish(),
        data: vec![
            (targets, Data::Uint(ids)),
            (number, Data::Float(vec![counted as f32])),
            (logits, Data::Float(values)),
        ],
    })
}

fn count_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (targets, number) = (args.read_uint(0)?, args.write(1)?);
    let targets = &targets[..p.rows as usize];
    let n = targets.iter().filter(|&&t| t != IGNORE).count();
    number[0] = R::from_f64(n as f64);
    Ok(())
}

fn rows_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let gradient = args.constant("GRADIENT")? != 0;
    let (targets, counted) = (args.read_uint(0)?, args.read(1)?);
    let (logits, row_loss) = (args.write(2)?, args.write(3)?);
    let (rows, vocabulary) = (p.rows as usize, p.vocabulary as usize);
    for m in 0..rows {
        let row = &mut logits[m * vocabulary..(m + 1) * vocabulary];
        if targets[m] >= p.vocabulary {
            let ignored = targets[m] == IGNORE;
            let value = if ignored { R::ZERO } else { R::from_f32(p.nan) };
            row_loss[m] = value;
            if gradient {
                row.fill(value);
            }
            continue;
        }
        let target = targets[m] as usize;
        let at_target = row[target];
        // A NaN is not found here; it comes out of the sum.
        let largest = row
            .iter()
            .fold(R::NEG_INFINITY, |a, &x| if x > a { x } else { a });
        let mut sum = R::ZERO;
        for x in row.iter_mut() {
            let e = (*x - largest).exp();
            sum += e;
            if gradient {
                *x = e;
            }
        }
        row_loss[m] = (sum.ln() + (largest - at_target)) / counted[0];
        if gradient {
            for (j, x) in row.iter_mut().enumerate() {
                let one = if j == target { R::ONE } else { R::ZERO };
                *x = (*x / sum - one) / counted[0];
            }
        }
    }
    Ok(())
}
