//! What options of a call promise about each other: a burn-in and the call that starts after it, chunks
//! and the whole, accumulated gradients and their sum, packed sequences and padded ones.

mod accumulation;
#[path = "../common/mod.rs"]
mod common;
mod dropout;
mod masks;
mod orders;
mod packed;
mod recomputation;
mod truncation;

use common::results::{Values, fill_inputs, write_inputs};
use wgrnn::cell::{self, Cell};
use wgrnn::ndarray::{Array2, s};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Layer, LayerSpec, Result, Sequence, Size};

const STEPS: usize = 7;
const BATCH: usize = 5;
const SIZE: Size = Size {
    steps: STEPS,
    batch: BATCH,
};
/// Unsorted, with the longest, one of no step, and ends on either side of what splits the steps.
const LENGTHS: [i64; BATCH] = [4, 7, 0, 2, 5];
/// The longest sum in these layers is that of a weight's gradient over all rows.
const LENGTH: usize = STEPS * BATCH;
const DROPOUT: f32 = 0.3;

/// Cells that together have every kernel and every way to hand on a state.
const CELLS: [&Cell; 4] = [
    &cell::LSTM_PEEPHOLE_PROJECTED,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
];

/// Those of them that a test takes: all, or on an adapter the `nth`.
fn cells(context: &Context, nth: usize) -> Vec<&'static Cell> {
    common::share_on(context, CELLS.to_vec(), nth, CELLS.len())
}

fn spec(cell: &'static Cell, num_layers: usize) -> LayerSpec {
    LayerSpec {
        num_layers,
        ..LayerSpec::new(cell, 4, 6)
    }
}

fn resets() -> Array2<bool> {
    let mut rng = Rng::new(11);
    let mut resets = Array2::from_shape_simple_fn((STEPS, BATCH), || rng.below(4) == 0);
    // One before the first step, and one before the step after a burn-in or a chunk.
    resets[[0, 1]] = true;
    resets[[3, 4]] = true;
    resets
}

/// Some steps of an array `[T, …]`.
fn steps(values: &[f64], steps: std::ops::Range<usize>, of: usize) -> Vec<f64> {
    let row = values.len() / of;
    values[steps.start * row..steps.end * row].to_vec()
}

/// The values with these names.
fn some(values: &Values, names: &[&str]) -> Values {
    let named = values.iter().filter(|(n, _)| names.contains(&n.as_str()));
    named.map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The gradients of the weights.
fn of_weights(values: &Values) -> Values {
    let weights = |n: &str| n.starts_with("dweight") || n.starts_with("dbias");
    let named = values.iter().filter(|(n, _)| weights(n));
    named.map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn sum(a: &Values, b: &Values) -> Values {
    let pair = |(name, a): (&String, &Vec<f64>)| {
        let values = a.iter().zip(&b[name]).map(|(a, b)| a + b).collect();
        (name.clone(), values)
    };
    a.iter().map(pair).collect()
}

/// A call over some of the steps, with the inputs, lengths and resets that belong to them.
fn over(
    layer: &Layer,
    part: std::ops::Range<usize>,
    call: impl Fn(Size) -> Call,
    given: &Values,
) -> Result<Sequence> {
    let size = Size {
        steps: part.len(),
        batch: BATCH,
    };
    let sequence = layer.sequence(&call(size))?;
    if sequence.call().lengths {
        let (start, most) = (part.start as i64, part.len() as i64);
        let lengths = LENGTHS.map(|l| (l - start).clamp(0, most));
        sequence.set_lengths(&lengths)?;
    }
    if sequence.call().resets {
        sequence.set_resets(resets().slice(s![part.clone(), ..]))?;
    }
    let mut given = given.clone();
    for name in ["x", "dy"] {
        if let Some(values) = given.get_mut(name) {
            *values = steps(values, part.clone(), STEPS);
        }
    }
    write_inputs(&sequence, &given)?;
    Ok(sequence)
}

/// Random numbers for all that a training call over all steps is given.
fn given(layer: &Layer, seed: u64) -> Result<Values> {
    fill_inputs(&layer.training(SIZE)?, seed)
}
