//! Time first and batch first.

use crate::common::results::{assert_all_close, everywhere, results, write_inputs};
use crate::{BATCH, LENGTH, LENGTHS, SIZE, STEPS, cells, given, over, resets, spec};
use wgrnn::ndarray::ArrayView3;
use wgrnn::{Call, Layer, LayerSpec, Order, Result};

/// `[T, N, F]` as `[N, T, F]`, or back.
fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let width = values.len() / (rows * columns);
    let shape = (rows, columns, width);
    let array = ArrayView3::from_shape(shape, values).unwrap();
    array.permuted_axes([1, 0, 2]).iter().copied().collect()
}

#[test]
fn orders_of_input_and_output_are_transpositions() -> Result<()> {
    const ORDERS: [Order; 2] = [Order::TimeFirst, Order::BatchFirst];
    for context in everywhere() {
        for cell in cells(&context, 2) {
            let spec = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            let layer = Layer::new(&context, spec, 3)?;
            let given = given(&layer, 1)?;
            let call = |size| Call::training(size).lengths().resets();
            let want = results(&over(&layer, 0..STEPS, call, &given)?)?;
            for (input, output) in ORDERS.into_iter().flat_map(|i| ORDERS.map(|o| (i, o))) {
                let order = |name: &str| match name {
                    "x" | "dx" => input,
                    "y" | "dy" => output,
                    _ => Order::TimeFirst,
                };
                let sequence = layer.sequence(&call(SIZE).orders(input, output))?;
                sequence.set_lengths(&LENGTHS)?;
                let resets = resets();
                sequence.set_resets(match input {
                    Order::TimeFirst => resets.view(),
                    Order::BatchFirst => resets.t(),
                })?;
                let mut given = given.clone();
                for (name, values) in &mut given {
                    if order(name) == Order::BatchFirst {
                        *values = transposed(values, STEPS, BATCH);
                    }
                }
                write_inputs(&sequence, &given)?;
                let mut got = results(&sequence)?;
                for (name, values) in &mut got {
                    if order(name) == Order::BatchFirst {
                        *values = transposed(values, BATCH, STEPS);
                    }
                }
                let what = format!("{} {input:?} {output:?}", cell.name);
                assert_all_close(&context, &what, &got, &want, LENGTH);
            }
        }
    }
    Ok(())
}
