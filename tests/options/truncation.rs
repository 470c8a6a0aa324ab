//! Truncated back-propagation: burn-in, and chunks that carry the state.

use crate::common::results::{
    Values, assert_all_close, assert_close, assert_same, assert_zero, differ, everywhere, results,
    write_inputs,
};
use crate::{LENGTH, STEPS, cells, given, of_weights, over, some, spec, steps, sum};
use wgrnn::cell;
use wgrnn::{Call, Context, Layer, LayerSpec, Mode, Result};

const BURN_IN: usize = 3;

fn burn_in(context: &Context, spec: LayerSpec, options: impl Fn(Call) -> Call) -> Result<()> {
    let what = format!("{} x {}", spec.cell.name, spec.num_layers);
    let layer = Layer::new(context, spec, 3)?;
    let mut given = given(&layer, 1)?;
    let with = |size| options(Call::training(size)).burn_in(BURN_IN);
    let got = results(&over(&layer, 0..STEPS, with, &given)?)?;

    let first = |size| Call {
        recompute: None,
        mode: Mode::Inference,
        ..options(Call::training(size))
    };
    let before = results(&over(&layer, 0..BURN_IN, first, &given)?)?;
    for (to, from) in [("h0", "hn"), ("c0", "cn")] {
        if let Some(state) = before.get(from) {
            given.insert(to.to_owned(), state.clone());
        }
    }
    let rest = |size| options(Call::training(size));
    let mut want = results(&over(&layer, BURN_IN..STEPS, rest, &given)?)?;
    for name in ["dh0", "dc0"] {
        if want.remove(name).is_some() {
            assert_zero(context, &format!("{what}: {name}"), &got[name]);
        }
    }
    for name in ["y", "dx"] {
        let late = steps(&got[name], BURN_IN..STEPS, STEPS);
        let want = want.remove(name).unwrap();
        assert_close(context, &format!("{what}: {name}"), &late, &want, LENGTH);
    }
    let early = |name: &str| steps(&got[name], 0..BURN_IN, STEPS);
    assert_close(context, &what, &early("y"), &before["y"], LENGTH);
    assert_zero(context, &format!("{what}: early dx"), &early("dx"));
    assert_all_close(context, &what, &got, &want, LENGTH);
    Ok(())
}

#[test]
fn a_burn_in_is_a_call_that_starts_later() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 3) {
            for num_layers in [1, 2] {
                burn_in(&context, spec(cell, num_layers), |call| call)?;
            }
            let masked = |call: Call| call.lengths().resets();
            burn_in(&context, spec(cell, 2), |call| masked(call).recompute(3))?;
        }
    }
    Ok(())
}

#[test]
fn nothing_but_a_burn_in_has_no_gradient() -> Result<()> {
    for context in everywhere() {
        let layer = Layer::new(&context, spec(&cell::LSTM_PEEPHOLE_PROJECTED, 2), 3)?;
        let given = given(&layer, 1)?;
        for accumulate in [false, true] {
            let call = |size| Call {
                accumulate,
                ..Call::training(size).burn_in(STEPS)
            };
            let sequence = over(&layer, 0..STEPS, call, &given)?;
            for (_, gradient) in sequence.gradients()? {
                gradient.write_f64(&vec![2.0; gradient.len()])?;
            }
            let got = results(&sequence)?;
            for (name, values) in got.iter().filter(|(n, _)| n.starts_with('d')) {
                let of_weight = of_weights(&got).contains_key(name);
                // What accumulates is left alone.
                let left = if accumulate && of_weight { 2.0 } else { 0.0 };
                let want = vec![left; values.len()];
                assert_same(
                    &context,
                    name,
                    &values.iter().map(|v| v.abs()).collect::<Vec<_>>(),
                    &want,
                );
            }
        }
    }
    Ok(())
}

#[test]
fn chunks_are_the_whole_with_gradients_cut() -> Result<()> {
    const CHUNK: usize = 3;
    for context in everywhere() {
        for cell in cells(&context, 0) {
            let what = cell.name;
            let layer = Layer::new(&context, spec(cell, 2), 3)?;
            let given = given(&layer, 1)?;
            let whole = results(&over(&layer, 0..2 * CHUNK, Call::training, &given)?)?;

            let chunk = over(&layer, 0..CHUNK, |s| Call::training(s).accumulate(), &given)?;
            let mut chunks = Vec::new();
            for nth in 0..2 {
                let part = nth * CHUNK..(nth + 1) * CHUNK;
                for name in ["x", "dy"] {
                    let values = steps(&given[name], part.clone(), STEPS);
                    write_inputs(&chunk, &Values::from([(name.to_owned(), values)]))?;
                }
                chunks.push(results(&chunk)?);
                chunk.carry()?;
            }
            let y = [chunks[0]["y"].clone(), chunks[1]["y"].clone()].concat();
            assert_close(&context, what, &y, &whole["y"], LENGTH);
            let states = some(&whole, &["hn", "cn"]);
            assert_all_close(&context, what, &chunks[1], &states, LENGTH);

            // The second chunk's gradients end where it starts, as after a burn-in.
            let cut = |s| Call::training(s).burn_in(CHUNK);
            let second = results(&over(&layer, 0..2 * CHUNK, cut, &given)?)?;
            let late = steps(&second["dx"], CHUNK..2 * CHUNK, 2 * CHUNK);
            assert_close(&context, what, &chunks[1]["dx"], &late, LENGTH);
            let first = of_weights(&chunks[0]);
            let want = sum(&first, &of_weights(&second));
            assert_all_close(&context, what, &chunks[1], &want, LENGTH);
            let uncut = of_weights(&whole);
            assert!(differ(&chunks[1]["dweight_hh_l0"], &uncut["dweight_hh_l0"]));
        }
    }
    Ok(())
}
