//! Packed sequences are padded ones with lengths.

use crate::common::results::{
    Values, assert_close, everywhere, fill_inputs, results, write_inputs,
};
use crate::{BATCH, LENGTH, SIZE, STEPS, cells, resets, spec};
use wgrnn::cell;
use wgrnn::ndarray::{Array2, ArrayView1, ArrayView3, Axis};
use wgrnn::plan::Target;
use wgrnn::{Call, Context, Layer, LayerSpec, Mode, Packing, Result, Sequence, Size};

/// No sequence is empty, which a packed array cannot say; two are equally long.
const PACKED: [usize; BATCH] = [4, 7, 1, 4, 6];

/// The packed rows of a padded array `[T, N, F]`.
fn packed(values: &[f64], packing: &Packing) -> Vec<f64> {
    let width = values.len() / (STEPS * BATCH);
    let row = |(t, n)| &values[(t * BATCH + n) * width..][..width];
    packing.rows().flat_map(row).copied().collect()
}

/// States `[L·D, N, F]` in the order of the packed sequences.
fn sorted(values: &[f64], packing: &Packing, levels: usize) -> Vec<f64> {
    let width = values.len() / (levels * BATCH);
    let array = ArrayView3::from_shape((levels, BATCH, width), values).unwrap();
    array
        .select(Axis(1), packing.order())
        .iter()
        .copied()
        .collect()
}

fn packed_equals_padded(context: &Context, spec: LayerSpec, recompute: bool) -> Result<()> {
    let layer = Layer::new(context, spec, 3)?;
    let packing = Packing::new(&PACKED)?;
    let padded = layer.sequence(&Call::training(SIZE).lengths().resets())?;
    padded.set_lengths(&PACKED.map(|l| l as i64))?;
    // A direction that runs from the end starts with the last step of each sequence; of two of them
    // the state before it is zeroed. Past the end a reset would count for padded sequences alone.
    let ends = [false, true, true, false, false];
    let resets = Array2::from_shape_fn((STEPS, BATCH), |(t, n)| match t + 1 == PACKED[n] {
        true => ends[n],
        false => t < PACKED[n] && resets()[[t, n]],
    });
    padded.set_resets(resets.view())?;
    let of_rows: Vec<bool> = packing.rows().map(|at| resets[at]).collect();
    let levels = spec.num_layers * spec.directions();
    let pack = |values: Values| -> Values {
        let each = values.into_iter().map(|(name, values)| {
            let values = match name.as_str() {
                "x" | "dx" | "y" | "dy" => packed(&values, &packing),
                "h0" | "c0" | "hn" | "cn" | "dh0" | "dc0" | "dhn" | "dcn" => {
                    sorted(&values, &packing, levels)
                }
                _ => values,
            };
            (name, values)
        });
        each.collect()
    };
    let given = pack(fill_inputs(&padded, 1)?);
    let want = pack(results(&padded)?);
    for mode in [Mode::Training, Mode::Inference] {
        let call = Call {
            resets: true,
            recompute: (recompute && mode == Mode::Training).then_some(3),
            ..Call::packed(packing.batch_sizes(), mode)
        };
        let sequence = layer.sequence(&call)?;
        sequence.set_resets(ArrayView1::from(&of_rows))?;
        write_inputs(&sequence, &given)?;
        let got = results(&sequence)?;
        for (name, got) in &got {
            let what = format!("{} {mode:?}: {name}", spec.cell.name);
            assert_close(context, &what, got, &want[name], LENGTH);
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_are_padded_ones_with_lengths() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 1) {
            packed_equals_padded(&context, spec(cell, 1), false)?;
            let both = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            packed_equals_padded(&context, both, true)?;
        }
    }
    Ok(())
}

#[test]
fn packed_work_is_that_of_its_tokens() -> Result<()> {
    let packing = Packing::new(&[7, 2, 1, 6])?;
    assert_eq!(packing.tokens(), 16);
    for cell in cell::ALL {
        let spec = LayerSpec {
            bidirectional: true,
            ..spec(cell, 2)
        };
        let flops = |call: &Call, section: &str| -> Result<u64> {
            let plan = Sequence::plan(&spec, call, &Target::default())?;
            Ok(plan.cost(plan.section(section)?)?.flops)
        };
        // As many sequences and tokens without padding; and the padded ones.
        let [same, padded] = [4, 7].map(|steps| Call::training(Size { steps, batch: 4 }));
        let packed = Call::packed(packing.batch_sizes(), Mode::Training);
        for section in ["forward", "backward"] {
            let work = flops(&packed, section)?;
            assert_eq!(work, flops(&same, section)?, "{} {section}", cell.name);
            assert!(work < flops(&padded, section)?);
        }
    }
    Ok(())
}
