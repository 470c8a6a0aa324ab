//! Lengths and resets.

use crate::common::results::{
    Values, assert_all_close, assert_close, assert_same, assert_zero, everywhere, fill_inputs,
    inputs, results, write_inputs,
};
use crate::{BATCH, CELLS, LENGTH, LENGTHS, SIZE, STEPS, cells, some, spec};
use wgrnn::cell;
use wgrnn::ndarray::Array2;
use wgrnn::{Call, Context, Layer, LayerSpec, Result, Size};

#[test]
fn lengths_change_from_run_to_run() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 3) {
            let layer = Layer::new(&context, spec(cell, 1), 3)?;
            let call = Call::training(SIZE).lengths();
            let kept = layer.sequence(&call)?;
            let given = fill_inputs(&kept, 1)?;
            let full = results(&layer.training(SIZE).and_then(|s| {
                write_inputs(&s, &given)?;
                Ok(s)
            })?)?;
            // Until lengths are written all are T.
            assert_all_close(&context, cell.name, &results(&kept)?, &full, LENGTH);
            for lengths in [LENGTHS, [7, 1, 3, 7, 6], [0; BATCH], [STEPS as i64; BATCH]] {
                kept.set_lengths(&lengths)?;
                let fresh = layer.sequence(&call)?;
                fresh.set_lengths(&lengths)?;
                write_inputs(&fresh, &given)?;
                let (got, want) = (results(&kept)?, results(&fresh)?);
                for (name, want) in &want {
                    assert_same(&context, &format!("{lengths:?}: {name}"), &got[name], want);
                }
                if lengths == [0; BATCH] {
                    nothing_but_states(&context, &got, &given);
                }
            }
        }
    }
    Ok(())
}

/// Fills the rows past the lengths.
fn fill_past(values: &mut [f64], value: f64) {
    let width = values.len() / (STEPS * BATCH);
    for (row, values) in values.chunks_mut(width).enumerate() {
        if (row / BATCH) as i64 >= LENGTHS[row % BATCH] {
            values.fill(value);
        }
    }
}

/// Neither what is given there, nor what an earlier run left there, be it NaN.
#[test]
fn what_stands_past_a_length_counts_for_nothing() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS.into_iter().chain([&cell::LSTM, &cell::RNN_RELU]) {
            let both = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            let layer = Layer::new(&context, both, 3)?;
            let call = Call::training(SIZE).lengths();
            for call in [call.clone(), call.recompute(3)] {
                let sequence = layer.sequence(&call)?;
                sequence.set_lengths(&LENGTHS)?;
                let mut given = fill_inputs(&sequence, 1)?;
                let want = results(&sequence)?;
                let same = |what: &str, given: &Values| -> Result<()> {
                    write_inputs(&sequence, given)?;
                    for (name, got) in results(&sequence)? {
                        let what = format!("{} {what}: {name}", cell.name);
                        assert_close(&context, &what, &got, &want[&name], LENGTH);
                    }
                    Ok(())
                };
                fill_past(given.get_mut("dy").unwrap(), f64::NAN);
                for value in [1e30, f64::INFINITY, f64::NAN] {
                    fill_past(given.get_mut("x").unwrap(), value);
                    same(&format!("{value}"), &given)?;
                }
                // All rows count, and what is kept of them is NaN.
                sequence.set_lengths(&[STEPS as i64; BATCH])?;
                assert!(results(&sequence)?["dx"].iter().any(|v| v.is_nan()));
                sequence.set_lengths(&LENGTHS)?;
                same("after a run over NaN", &given)?;
            }
        }
    }
    Ok(())
}

/// The initial state of a sequence without steps goes to its final state alone.
#[test]
fn a_state_without_steps_reaches_no_gradient() -> Result<()> {
    let empty = LENGTHS.iter().position(|&length| length == 0).unwrap();
    for context in everywhere() {
        for cell in CELLS {
            let layer = Layer::new(&context, spec(cell, 1), 3)?;
            let sequence = layer.sequence(&Call::training(SIZE).lengths())?;
            sequence.set_lengths(&LENGTHS)?;
            let mut given = fill_inputs(&sequence, 1)?;
            let want = results(&sequence)?;
            for name in ["h0", "c0"] {
                if let Some(values) = given.get_mut(name) {
                    let width = values.len() / BATCH;
                    values[empty * width..(empty + 1) * width].fill(f64::NAN);
                }
            }
            write_inputs(&sequence, &given)?;
            for (name, got) in results(&sequence)? {
                if ["hn", "cn"].contains(&name.as_str()) {
                    continue;
                }
                let what = format!("{}: {name}", cell.name);
                assert_close(&context, &what, &got, &want[&name], LENGTH);
            }
        }
    }
    Ok(())
}

/// Sequences without a step hand their initial state to the end, and its gradient back.
fn nothing_but_states(context: &Context, got: &Values, given: &Values) {
    for (name, values) in got {
        let from = match name.as_str() {
            "hn" => "h0",
            "cn" => "c0",
            "dh0" => "dhn",
            "dc0" => "dcn",
            _ => {
                assert_zero(context, name, values);
                continue;
            }
        };
        assert_same(context, name, values, &given[from]);
    }
}

#[test]
fn resets_at_every_step_are_single_steps() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 2) {
            let what = cell.name;
            let layer = Layer::new(&context, spec(cell, 2), 3)?;
            let whole = layer.sequence(&Call::training(SIZE).resets())?;
            whole.set_resets(Array2::from_elem((STEPS, BATCH), true).view())?;
            let given = fill_inputs(&whole, 1)?;
            let got = results(&whole)?;
            // The same rows as sequences of one step each, from zeros.
            let single = layer.training(Size {
                steps: 1,
                batch: STEPS * BATCH,
            })?;
            write_inputs(&single, &some(&given, &["x", "dy"]))?;
            // The last steps end with the whole's final states.
            for (name, tensor) in inputs(&single)? {
                if ["dhn", "dcn"].contains(&name) {
                    let width = *tensor.shape().last().unwrap();
                    let levels = given[name].chunks(BATCH * width);
                    let behind = vec![0.0; (STEPS - 1) * BATCH * width];
                    let all: Vec<f64> = levels.flat_map(|l| [&behind, l].concat()).collect();
                    tensor.write_f64(&all)?;
                }
            }
            let mut want = results(&single)?;
            for name in ["dh0", "dc0", "hn", "cn"] {
                let Some(values) = want.remove(name) else {
                    continue;
                };
                let got = &got[name];
                if name.starts_with('d') {
                    assert_zero(&context, &format!("{what}: {name}"), got);
                    continue;
                }
                let width = got.len() / (2 * BATCH);
                let level = STEPS * BATCH * width;
                let last = values
                    .chunks(level)
                    .flat_map(|l| &l[level - BATCH * width..]);
                let last: Vec<f64> = last.copied().collect();
                assert_close(&context, &format!("{what}: {name}"), got, &last, LENGTH);
            }
            assert_all_close(&context, what, &got, &want, LENGTH);
        }
    }
    Ok(())
}
