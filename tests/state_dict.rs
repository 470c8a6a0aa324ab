//! Weights from PyTorch's state dicts (`tests/data/state_dict`) and back, and what is refused.

mod common;

use std::path::Path;

use wgrnn::interop::safetensors::{self, Archive, Array, Data};
use wgrnn::ndarray::Array3;
use wgrnn::{Context, Error, Gru, Layer, LayerSpec, Lstm, Result};

/// Both sides compute in `f32`, unit roundoff u = 6e-8. A pre-activation sums at most 24 terms below 1, whose
/// roundings scatter to about 24 u = 1.4e-6; six steps and two layers of slopes below 1 leave it near that.
/// A weight in the wrong place shows as 1e-2 or more.
const TOLERANCE: f32 = 1e-5;

fn lstm() -> LayerSpec {
    let lstm = Lstm::new(5, 7).num_layers(2).bidirectional(true);
    lstm.projection(3).spec()
}

fn gru() -> LayerSpec {
    Gru::new(5, 7).num_layers(2).bidirectional(true).spec()
}

fn archive(name: &str) -> Archive {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/state_dict");
    safetensors::load(&folder.join(name)).unwrap()
}

fn compare(what: &str, got: &Array3<f32>, expected: &Array) {
    assert_eq!(got.shape(), expected.shape, "{what}");
    let pairs = got.iter().zip(expected.as_f32().unwrap());
    for (got, expected) in pairs {
        assert!(
            (got - expected).abs() <= TOLERANCE,
            "{what}: {got} {expected}"
        );
    }
}

#[test]
fn a_state_dict_computes_what_pytorch_computes() -> Result<()> {
    let mut contexts = vec![Context::cpu(), Context::cpu_f64()];
    contexts.extend(common::kept());
    for (file, spec) in [("lstm.safetensors", lstm()), ("gru.safetensors", gru())] {
        let archive = archive(file);
        let weights = archive.under("rnn.");
        let x = &archive.tensors["x"];
        let x = Array3::from_shape_vec((6, 3, 5), x.as_f32().unwrap().to_vec()).unwrap();
        for context in &contexts {
            let layer = Layer::new(context, spec, 1)?;
            // Kept from before the weights are loaded.
            layer.forward(x.view(), None)?;
            layer.load(&weights)?;
            let out = layer.forward(x.view(), None)?;
            let on = format!("{file} on {}", context.name());
            compare(&format!("{on}: y"), &out.y, &archive.tensors["y"]);
            compare(&format!("{on}: hn"), &out.state.h, &archive.tensors["hn"]);
            assert_eq!(out.state.c.is_some(), archive.tensors.contains_key("cn"));
            if let Some(c) = &out.state.c {
                compare(&format!("{on}: cn"), c, &archive.tensors["cn"]);
            }
            assert_eq!(layer.to_archive()?, weights);
        }
    }
    Ok(())
}

#[test]
fn a_part_of_an_archive() {
    let array = |value: f32| Array {
        shape: vec![1],
        data: Data::F32(vec![value]),
    };
    let names = ["rnn.a", "rnn.rnn.a", "rnn", "other.rnn.a", "rnn2.a"];
    let mut archive = Archive::default();
    archive.metadata.insert("of".to_owned(), "all".to_owned());
    for (k, name) in names.iter().enumerate() {
        archive.tensors.insert(name.to_string(), array(k as f32));
    }
    let part = archive.under("rnn.");
    assert_eq!(part.tensors.len(), 2);
    assert_eq!(part.tensors["a"], array(0.0));
    assert_eq!(part.tensors["rnn.a"], array(1.0));
    assert!(part.metadata.is_empty());
    assert_eq!(archive.under("").tensors, archive.tensors);
    assert!(archive.under("none.").tensors.is_empty());
}

/// And the weights are those of before, although only the last of them, or one that is surplus, does not fit.
#[test]
fn weights_that_do_not_fit() -> Result<()> {
    let layer = Layer::new(&Context::cpu(), lstm(), 2)?;
    let before = layer.to_archive()?;
    let good = archive("lstm.safetensors").under("rnn.");
    let refused = |change: &dyn Fn(&mut Archive)| {
        let mut archive = good.clone();
        change(&mut archive);
        let reason = match layer.load(&archive).expect_err("it was accepted") {
            Error::Weights { op, reason } => {
                assert_eq!(op, "Layer::load");
                reason
            }
            other => panic!("{other}"),
        };
        assert_eq!(layer.to_archive().unwrap(), before, "{reason}");
        reason
    };
    const LAST: &str = "weight_hr_l1_reverse";
    assert_eq!(good.tensors[LAST].shape, [3, 7]);
    let last = |change: fn(&mut Array)| {
        refused(&|a| change(a.tensors.get_mut(LAST).expect("it is there")))
    };
    assert_eq!(
        refused(&|a| drop(a.tensors.remove(LAST))),
        "'weight_hr_l1_reverse' is missing"
    );
    assert_eq!(
        last(|a| a.shape = vec![7, 3]),
        "'weight_hr_l1_reverse' must be [3, 7], got [7, 3]"
    );
    assert_eq!(
        last(|a| a.data = Data::F64(vec![0.0; 21])),
        "'weight_hr_l1_reverse' must be f32, got F64"
    );
    assert_eq!(
        last(|a| a.data = Data::F32(vec![0.0; 20])),
        "'weight_hr_l1_reverse' must be [3, 7], got 20 elements"
    );
    let surplus = |a: &mut Archive| {
        let array = a.tensors[LAST].clone();
        a.tensors.insert("weight_hr_l2".to_owned(), array);
    };
    assert_eq!(refused(&surplus), "'weight_hr_l2' is surplus");
    // Without its prefix nothing is found.
    let whole = archive("lstm.safetensors");
    assert_eq!(
        refused(&|a| *a = whole.clone()),
        "'weight_ih_l0' is missing"
    );
    layer.load(&good)?;
    assert_eq!(layer.to_archive()?, good);
    Ok(())
}
