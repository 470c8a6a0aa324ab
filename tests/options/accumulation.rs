//! Gradients that are added to existing ones.

use crate::common::results::{
    Values, assert_all_close, assert_zero, everywhere, fill_inputs, latest, results,
};
use crate::{LENGTH, SIZE, cells, of_weights, some, spec, sum};
use wgrnn::cell::Cell;
use wgrnn::{Call, Context, Layer, Result, Size};

/// Calls of different sizes and kinds that add to the same gradients.
fn accumulation(context: &Context, cell: &'static Cell) -> Result<()> {
    let layer = Layer::new(context, spec(cell, 2), 3)?;
    let small = Size { steps: 4, batch: 2 };
    let calls = [Call::training(SIZE), Call::training(small).recompute(3)];
    let mut apart = Vec::new();
    for (seed, call) in calls.iter().enumerate() {
        let sequence = layer.sequence(call)?;
        fill_inputs(&sequence, seed as u64)?;
        apart.push(results(&sequence)?);
    }
    let want = sum(&of_weights(&apart[0]), &of_weights(&apart[1]));

    let [one, two] = calls.map(Call::accumulate);
    let one = layer.sequence(&one)?;
    let two = layer.sequence_into(&two, &one.gradients()?)?;
    for (seed, sequence) in [&one, &two].into_iter().enumerate() {
        fill_inputs(sequence, seed as u64)?;
    }
    let run = || -> Result<Values> {
        let alone = [results(&one)?, results(&two)?];
        // What is not a weight's is not added up.
        for (got, want) in alone.iter().zip(&apart) {
            let ends = some(want, &["y", "hn", "cn", "dx", "dh0", "dc0"]);
            assert_all_close(context, cell.name, got, &ends, LENGTH);
        }
        Ok(of_weights(&latest(&one)?))
    };
    assert_all_close(context, "sum", &run()?, &want, LENGTH);
    assert_all_close(context, "again", &run()?, &sum(&want, &want), LENGTH);
    two.zero_gradients()?;
    for (name, values) in of_weights(&latest(&one)?) {
        assert_zero(context, &name, &values);
    }
    assert_all_close(context, "from zero", &run()?, &want, LENGTH);
    Ok(())
}

#[test]
fn accumulated_gradients_are_the_sum() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 1) {
            accumulation(&context, cell)?;
        }
    }
    Ok(())
}
