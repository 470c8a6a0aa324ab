//! What a device does at most, measured on it: the rate of its best product, the rate at which it reads
//! or copies working sets of several sizes, the time of a dispatch that waits for another.
//!
//! All by this crate's own kernels on the same backend: a device may do more than they ask of it.

use std::time::{Duration, Instant};

use wgrnn::kernels::copy::copy;
use wgrnn::kernels::gemm::Gemm;
use wgrnn::plan::{Builder, Matrix, Role};
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Program, Result};

use super::measure::{self, Limits};
use crate::floor::{Bandwidth, Peaks};

/// The sides of the matrices: 256 KiB to 256 MiB of weights.
const SIDES: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// The largest side of a product with as many rows.
const LARGEST_PRODUCT: usize = 4096;
/// No larger one is tried if it would take so many seconds, or after one that did.
const SLOW: f64 = 0.1;
/// Bytes that one measurement moves, in as many dispatches as that takes.
const TRAFFIC: usize = 1 << 26;
/// The most dispatches of one measurement.
const MOST: usize = 64;
/// How long each is repeated at most.
const MOST_TIME: Duration = Duration::from_millis(100);

/// The part of a shape's budget after which no larger size is tried.
const PART: f64 = 0.25;

/// Measures a device, in some seconds.
///
/// # Errors
/// If the device fails, or can hold none of the sizes.
pub(super) fn measure(context: &Context, limits: Limits) -> Result<Peaks> {
    let most = limits.budget.mul_f64(PART);
    let limits = Limits {
        min_time: limits.min_time.min(MOST_TIME),
        budget: limits.budget.min(5 * MOST_TIME),
    };
    let peaks = Peaks {
        flops: flops(context, limits, most)?,
        bandwidths: bandwidths(context, limits, most)?,
        dispatch: dispatch(context, limits)?,
    };
    if peaks.flops == 0.0 || peaks.bandwidths.is_empty() {
        return Err(Error::Unsupported {
            op: "bench",
            needs: "a device that cannot hold matrices of 256 x 256".to_owned(),
        });
    }
    Ok(peaks)
}

/// The best rate of a product of square matrices.
fn flops(context: &Context, limits: Limits, most: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut best = 0.0;
    for side in SIDES.into_iter().filter(|s| *s <= LARGEST_PRODUCT) {
        let Some(program) = fits(products(context, side, side, 2))? else {
            break;
        };
        let seconds = least(&program, limits)? / 2.0;
        best = f64::max(best, 2.0 * (side as f64).powi(3) / seconds);
        // The next takes eight times as many operations.
        if 8.0 * seconds > SLOW || start.elapsed() > most {
            break;
        }
    }
    Ok(best)
}

/// For each size the better rate of copying half of a set to the other half and of multiplying a row
/// by a matrix.
fn bandwidths(context: &Context, limits: Limits, most: Duration) -> Result<Vec<Bandwidth>> {
    let start = Instant::now();
    let mut bandwidths = Vec::new();
    // A device that is slow with one row would take minutes with the largest matrix.
    let mut one_row = true;
    for side in SIDES {
        let bytes = 4 * side * side;
        let count = (TRAFFIC / bytes).clamp(2, MOST);
        let mut least_seconds = f64::INFINITY;
        if let Some(program) = fits(copies(context, bytes / 8, count))? {
            least_seconds = least(&program, limits)?;
        }
        if one_row && let Some(program) = fits(products(context, 1, side, count))? {
            let seconds = least(&program, limits)?;
            least_seconds = least_seconds.min(seconds);
            one_row = seconds < SLOW;
        }
        let rate = (count * bytes) as f64 / least_seconds;
        if rate > 0.0 {
            let bytes = bytes as f64;
            bandwidths.push(Bandwidth { bytes, rate });
        }
        if start.elapsed() > most {
            break;
        }
    }
    Ok(bandwidths)
}

/// What a device cannot hold is left out.
fn fits(program: Result<Program>) -> Result<Option<Program>> {
    match program {
        Ok(program) => Ok(Some(program)),
        Err(Error::Limit { .. } | Error::Unsupported { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The time by which a chain of dispatches that do nothing grows with each.
fn dispatch(context: &Context, limits: Limits) -> Result<f64> {
    const FEW: usize = 64;
    const MANY: usize = 1088;
    let few = least(&copies(context, 1, FEW)?, limits)?;
    let many = least(&copies(context, 1, MANY)?, limits)?;
    Ok((many - few).max(0.0) / (MANY - FEW) as f64)
}

/// The least time of a program's only section: that of the device where it can tell, else the whole.
fn least(program: &Program, limits: Limits) -> Result<f64> {
    let timed = !matches!(program.run_timed(&["main"]), Err(Error::Unsupported { .. }));
    let samples = measure::sample(limits, || {
        if timed {
            return Ok(program.run_timed(&["main"])?.as_secs_f64());
        }
        measure::once(|| {
            program.run("main")?;
            program.context().wait()
        })
    })?;
    Ok(samples.min())
}

/// x · W back and forth between two matrices of `rows`, with W `[side, side]`.
fn products(context: &Context, rows: usize, side: usize, count: usize) -> Result<Program> {
    let mut b = Builder::on("products", context.target());
    let x = b.float("x", &[rows, side], Role::State);
    let y = b.float("y", &[rows, side], Role::State);
    let weight = b.float("weight", &[side, side], Role::Input);
    let w = Matrix::dense(weight, side, side);
    let [x, y] = [x, y].map(|id| Matrix::dense(id, rows, side));
    for step in 0..count {
        let (from, to) = if step % 2 == 0 { (x, y) } else { (y, x) };
        Gemm::new(from, w, to).push(&mut b)?;
    }
    let program = Program::new(context, b.finish(), &[])?;
    // The products stay as large as they are.
    fill(&program, "weight", (3.0 / side as f32).sqrt())?;
    fill(&program, "x", 1.0)?;
    Ok(program)
}

/// Copies of `len` values back and forth.
fn copies(context: &Context, len: usize, count: usize) -> Result<Program> {
    let mut b = Builder::new("copies");
    let ends = [
        b.float("x", &[len], Role::State),
        b.float("y", &[len], Role::State),
    ];
    for step in 0..count {
        copy(&mut b, (ends[step % 2], 0), (ends[(step + 1) % 2], 0), len)?;
    }
    let program = Program::new(context, b.finish(), &[])?;
    fill(&program, "x", 1.0)?;
    Ok(program)
}

/// Random numbers in ±`bound`, the same ones again and again: zeros could lie in memory that is not there
/// or be compressed.
fn fill(program: &Program, name: &str, bound: f32) -> Result<()> {
    let tensor = program.named(name)?;
    let some = Rng::new(3).uniforms(65_521, -bound, bound);
    let all: Vec<f32> = some.iter().copied().cycle().take(tensor.len()).collect();
    tensor.write(&all)
}
