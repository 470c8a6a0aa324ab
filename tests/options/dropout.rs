//! Dropout between layers.

use crate::common::results::{
    Values, assert_same, everywhere, fill_inputs, latest, results, write_inputs,
};
use crate::{DROPOUT, SIZE, some};
use wgrnn::cell;
use wgrnn::train::{LanguageModel, ModelSpec};
use wgrnn::{Activation, Context, Function, Layer, LayerSpec, Result, Sequence, Size};

/// Layers whose outputs are what a lower one makes of their input: h' = W_ih x + W_hh h.
fn linear(dropout: f32, num_layers: usize) -> LayerSpec {
    let mut spec = LayerSpec {
        num_layers,
        dropout,
        dropout_seed: 9,
        bias: false,
        ..LayerSpec::new(&cell::RNN_TANH, 6, 6)
    };
    spec.activations[0] = Activation::new(Function::Affine).alpha(1.0).beta(0.0);
    spec
}

/// A layer whose lowest one hands on its input as it is, in each direction.
fn handing_on(context: &Context, spec: LayerSpec) -> Result<Layer> {
    let layer = Layer::new(context, spec, 3)?;
    let identity = |i: usize| f32::from(u8::from(i / 6 == i % 6));
    for level in spec.levels().filter(|l| l.layer == 0) {
        let set = |weight: &str, values: &[f32]| {
            layer.set_weight(&format!("{weight}_{}", level.suffix()), values)
        };
        set("weight_ih", &(0..36).map(identity).collect::<Vec<_>>())?;
        set("weight_hh", &[0.0; 36])?;
    }
    layer.prepare()?;
    Ok(layer)
}

/// Large enough for frequencies.
const MANY: Size = Size {
    steps: 20,
    batch: 25,
};

/// What the lowest layer hands on, after dropping.
fn handed_on(sequence: &Sequence, layer: usize) -> Result<Vec<f64>> {
    // Layers that run side by side have theirs in one buffer.
    if let Ok(all) = sequence.program().named("y of layers") {
        let of_layer = sequence.y().len();
        let values = all.read_f64()?;
        return Ok(values[layer * of_layer..(layer + 1) * of_layer].to_vec());
    }
    let name = format!("y_l{layer}");
    sequence.program().named(&name)?.read_f64()
}

#[test]
fn dropped_outputs_are_zero_and_the_others_scaled() -> Result<()> {
    let mut masks = Vec::new();
    for context in everywhere() {
        let layer = handing_on(&context, linear(DROPOUT, 3))?;
        let sequence = layer.training(MANY)?;
        let given = fill_inputs(&sequence, 1)?;
        // So that every gradient comes from above.
        let dhn = sequence.dhn()?;
        dhn.write(&vec![0.0; dhn.len()])?;
        let got = results(&sequence)?;
        let dropped = handed_on(&sequence, 0)?;
        let mask: Vec<bool> = dropped.iter().map(|&v| v != 0.0).collect();
        let scaled: Vec<f64> = given["x"]
            .iter()
            .map(|x| x / (1.0 - f64::from(DROPOUT)))
            .collect();
        for (i, kept) in mask.iter().enumerate() {
            let (value, want) = (dropped[i], if *kept { scaled[i] } else { 0.0 });
            let error = (value - want).abs();
            assert!(error <= 1e-6 * want.abs(), "[{i}] {value} {want}");
            // The gradient of what was dropped is 0, and only that.
            let at = format!("{}: dx[{i}]", context.name());
            assert_eq!(got["dx"][i] != 0.0, *kept, "{at}");
        }
        // Four standard deviations of a binomial distribution.
        let (p, count) = (f64::from(DROPOUT), mask.len() as f64);
        let zeros = mask.iter().filter(|kept| !**kept).count() as f64;
        let most = 4.0 * (count * p * (1.0 - p)).sqrt();
        assert!((zeros - count * p).abs() < most, "{zeros} of {count}");

        // The second layer drops others.
        let second: Vec<bool> = handed_on(&sequence, 1)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, second);
        // The next forward pass drops others again; the same clock drops the same.
        let clock = sequence.dropout_clock().unwrap();
        let now = clock.read_uint()?[0];
        sequence.forward()?;
        assert_eq!(clock.read_uint()?, [now + 1]);
        let next: Vec<bool> = handed_on(&sequence, 0)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, next);
        clock.write_uint(&[now - 1])?;
        for (name, again) in results(&sequence)? {
            assert_same(&context, &name, &again, &got[&name]);
        }
        // So does another seed.
        let seeded = LayerSpec {
            dropout_seed: 10,
            ..linear(DROPOUT, 3)
        };
        let other = handing_on(&context, seeded)?.training(MANY)?;
        write_inputs(&other, &given)?;
        other.forward()?;
        let other: Vec<bool> = handed_on(&other, 0)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, other);
        masks.push((mask, second, next));
    }
    // The same everywhere.
    assert!(masks.iter().all(|m| *m == masks[0]));
    Ok(())
}

#[test]
fn outputs_of_both_directions_are_dropped_once() -> Result<()> {
    for context in everywhere() {
        let spec = LayerSpec {
            bidirectional: true,
            ..linear(DROPOUT, 2)
        };
        let layer = handing_on(&context, spec)?;
        let sequence = layer.training(SIZE)?;
        let given = fill_inputs(&sequence, 1)?;
        sequence.forward()?;
        let dropped = handed_on(&sequence, 0)?;
        // Each direction hands on the same rows.
        let both = given["x"].chunks(6).flat_map(|row| [row, row].concat());
        let mut zeros = 0;
        for (i, (value, x)) in dropped.iter().zip(both).enumerate() {
            let want = x / (1.0 - f64::from(DROPOUT));
            zeros += usize::from(*value == 0.0);
            let kept = (value - want).abs() <= 1e-6 * want.abs();
            assert!(*value == 0.0 || kept, "[{i}] {value} {want}");
        }
        assert!(
            (dropped.len() / 5..dropped.len() / 2).contains(&zeros),
            "{zeros}"
        );
    }
    Ok(())
}

#[test]
fn inference_drops_nothing() -> Result<()> {
    for context in everywhere() {
        let with = Layer::new(&context, linear(DROPOUT, 3), 3)?.inference(SIZE)?;
        let without = Layer::new(&context, linear(0.0, 3), 3)?.inference(SIZE)?;
        assert!(with.dropout_clock().is_none());
        for sequence in [&with, &without] {
            fill_inputs(sequence, 1)?;
        }
        let (got, want) = (results(&with)?, results(&without)?);
        for (name, want) in want {
            assert_same(&context, &name, &got[&name], &want);
        }
    }
    Ok(())
}

#[test]
fn dropout_keeps_the_mean() -> Result<()> {
    const RUNS: usize = 400;
    let context = Context::cpu();
    let sequence = Layer::new(&context, linear(DROPOUT, 2), 3)?.training(SIZE)?;
    let plain = Layer::new(&context, linear(0.0, 2), 3)?.training(SIZE)?;
    let given = fill_inputs(&sequence, 1)?;
    write_inputs(&plain, &given)?;
    let want = results(&plain)?;
    let mut sums: Values = Values::new();
    let mut squares: Values = Values::new();
    for _ in 0..RUNS {
        for (name, values) in some(&results(&sequence)?, &["y", "hn", "dx"]) {
            let zeros = vec![0.0; values.len()];
            let sum = sums.entry(name.clone()).or_insert(zeros.clone());
            sum.iter_mut().zip(&values).for_each(|(s, v)| *s += v);
            let square = squares.entry(name).or_insert(zeros);
            square
                .iter_mut()
                .zip(&values)
                .for_each(|(s, v)| *s += v * v);
        }
    }
    for (name, sums) in &sums {
        for (i, (sum, square)) in sums.iter().zip(&squares[name]).enumerate() {
            let mean = sum / RUNS as f64;
            let variance = (square / RUNS as f64 - mean * mean).max(0.0);
            // Of some 500 elements none should be five standard errors off.
            let most = 5.0 * (variance / RUNS as f64).sqrt() + 1e-5;
            let want = want[name][i];
            assert!(
                (mean - want).abs() <= most,
                "{name}[{i}] {mean} {want} ± {most}"
            );
        }
    }
    Ok(())
}

/// Which of the lowest layer's outputs a forward pass leaves.
fn mask(sequence: &Sequence) -> Result<Vec<bool>> {
    sequence.forward()?;
    Ok(handed_on(sequence, 0)?.iter().map(|&v| v != 0.0).collect())
}

#[test]
fn no_two_passes_of_a_layer_drop_the_same() -> Result<()> {
    for context in everywhere() {
        let layer = handing_on(&context, linear(DROPOUT, 2))?;
        let planned = || -> Result<Sequence> {
            let sequence = layer.training(SIZE)?;
            fill_inputs(&sequence, 1)?;
            Ok(sequence)
        };
        let kept = planned()?;
        let mut masks = Vec::new();
        // A call that is planned for every batch goes on, as one that is kept.
        for _ in 0..3 {
            masks.push(mask(&planned()?)?);
            masks.push(mask(&kept)?);
        }
        for (n, mask) in masks.iter().enumerate() {
            assert!(!masks[..n].contains(mask), "{}: mask {n}", context.name());
        }
        let clock = layer.dropout_clock().unwrap();
        assert_eq!(clock.read_uint()?, [6]);
        // Asked for, in any of them.
        for n in [4, 1] {
            clock.write_uint(&[n])?;
            assert!(
                mask(&planned()?)? == masks[n as usize],
                "{}",
                context.name()
            );
        }
    }
    Ok(())
}

#[test]
fn a_backward_pass_drops_what_its_own_forward_pass_did() -> Result<()> {
    for context in everywhere() {
        let layer = Layer::new(&context, linear(DROPOUT, 2), 3)?;
        let [one, two] = [layer.training(SIZE)?, layer.training(SIZE)?];
        let given = fill_inputs(&one, 1)?;
        write_inputs(&two, &given)?;
        let want = results(&one)?;
        // The same mask once more, and another's pass before the way back.
        let clock = one.dropout_clock().unwrap();
        clock.write_uint(&[0])?;
        one.forward()?;
        two.forward()?;
        clock.write_uint(&[77])?;
        one.backward()?;
        for (name, got) in latest(&one)? {
            assert_same(&context, &name, &got, &want[&name]);
        }
    }
    Ok(())
}

#[test]
fn an_archive_has_the_counter_of_masks() -> Result<()> {
    for context in everywhere() {
        let layer = handing_on(&context, linear(DROPOUT, 2))?;
        let planned = |layer: &Layer| -> Result<Sequence> {
            let sequence = layer.training(SIZE)?;
            fill_inputs(&sequence, 1)?;
            Ok(sequence)
        };
        mask(&planned(&layer)?)?;
        let mut archive = layer.to_archive()?;
        let next = mask(&planned(&layer)?)?;
        let loaded = Layer::new(&context, linear(DROPOUT, 2), 8)?;
        loaded.load(&archive)?;
        assert!(mask(&planned(&loaded)?)? == next, "{}", context.name());
        // As PyTorch's, which have none.
        archive.metadata.clear();
        loaded.load(&archive)?;
        assert_eq!(loaded.dropout_clock().unwrap().read_uint()?, [2]);
        for wrong in ["", "-1", "4294967296", "one"] {
            let named = ("dropout_clock".to_owned(), wrong.to_owned());
            archive.metadata = [named].into();
            assert!(loaded.load(&archive).is_err(), "{wrong}");
        }
        let without = Layer::new(&context, linear(0.0, 2), 8)?;
        without.load(&archive)?;
        assert!(without.dropout_clock().is_none() && without.to_archive()?.metadata.is_empty());
        // So has that of a model around it.
        let spec = ModelSpec {
            vocabulary: 3,
            layer: linear(DROPOUT, 2),
        };
        let model = LanguageModel::new(&context, spec, 1)?;
        planned(model.layer())?.forward()?;
        let mut archive = model.to_archive()?;
        let counted = |model: &LanguageModel| model.layer().dropout_clock().unwrap().read_uint();
        let loaded = LanguageModel::new(&context, spec, 2)?;
        loaded.load(&archive)?;
        assert_eq!([counted(&model)?, counted(&loaded)?], [[1], [1]]);
        let layer = Layer::new(&context, linear(DROPOUT, 2), 8)?;
        layer.load(&archive.under("rnn."))?;
        assert_eq!(layer.dropout_clock().unwrap().read_uint()?, [1]);
        let named = ("rnn.dropout_clock".to_owned(), "one".to_owned());
        archive.metadata = [named].into();
        assert!(loaded.load(&archive).is_err());
    }
    Ok(())
}
