//! Every cell, forward and backward, alone and with all that a call may have, on the browser's WebGPU
//! against the CPU oracle.

use wasm_bindgen::prelude::*;
use wgrnn::check::{compare, tolerance};
use wgrnn::ndarray::Array2;
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Dtype, Layer, LayerSpec, Result, Sequence, Size, Tensor, cell};

const SIZE: Size = Size { steps: 5, batch: 6 };
const INPUT: usize = 17;
const HIDDEN: usize = 65;

/// A report; its last line is `passed` or `failed`.
#[wasm_bindgen]
pub async fn run() -> String {
    console_error_panic_hook::set_once();
    let mut report = String::new();
    let verdict = match compare_all(&mut report).await {
        Ok(0) => "passed",
        Ok(_) => "failed",
        Err(e) => {
            report.push_str(&format!("{e}\n"));
            "failed"
        }
    };
    report + verdict
}

/// The number of tensors that differ.
async fn compare_all(report: &mut String) -> Result<usize> {
    let gpu = Context::open_async("webgpu").await?;
    report.push_str(&format!("{}\n", gpu.name()));
    let oracle = Context::cpu_f64();
    let mut failures = 0;
    let kinds = [("plain", false), ("options", true)];
    for (cell, (kind, options)) in cell::ALL.iter().flat_map(|c| kinds.map(|k| (c, k))) {
        let (got, want) = (call(&gpu, cell, options)?, call(&oracle, cell, options)?);
        let limit = tolerance::layer(
            Dtype::F32,
            (SIZE.steps * SIZE.batch).max(HIDDEN * cell.gates),
            0.0,
        );
        for ((name, got), (_, want)) in tensors(&got)?.iter().zip(&tensors(&want)?) {
            let (got, want) = (values(got).await?, values(want).await?);
            let error = compare(&got, &want).error;
            let status = if error <= limit { "pass" } else { "FAIL" };
            failures += usize::from(error > limit || error.is_nan());
            report.push_str(&format!(
                "{status} {:24} {kind:8} {name:24} {:.3} of the tolerance\n",
                cell.name,
                error / limit
            ));
        }
    }
    Ok(failures)
}

fn call(context: &Context, cell: &'static cell::Cell, options: bool) -> Result<Sequence> {
    let mut spec = LayerSpec::new(cell, INPUT, HIDDEN);
    let mut kind = Call::training(SIZE);
    if options {
        spec.num_layers = 2;
        spec.bidirectional = true;
        spec.dropout = 0.2;
        spec.clip = Some(0.9);
        kind = kind.lengths().resets().batch_first().recompute(2);
    }
    let call = Layer::new(context, spec, 3)?.sequence(&kind)?;
    if options {
        call.set_lengths(&[5, 0, 3, 1, 5, 2])?;
        let resets = Array2::from_shape_fn((SIZE.batch, SIZE.steps), |(n, t)| (n + t) % 4 == 3);
        call.set_resets(resets.view())?;
    }
    let mut rng = Rng::new(4);
    for tensor in [call.x(), call.h0(), call.dy()?, call.dhn()?] {
        tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0))?;
    }
    call.forward()?;
    call.backward()?;
    Ok(call)
}

fn tensors(call: &Sequence) -> Result<Vec<(String, Tensor)>> {
    let mut all = vec![
        ("y".to_owned(), call.y().clone()),
        ("dx".to_owned(), call.dx()?.clone()),
        ("dh0".to_owned(), call.dh0()?.clone()),
    ];
    all.extend(call.gradients()?);
    Ok(all)
}

async fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor
        .read_async()
        .await?
        .into_iter()
        .map(f64::from)
        .collect())
}
