//! Reading a case: its metadata, and then what `tensors` says of the rest.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::safetensors::{self, Archive};
use super::{Case, CaseCell};
use crate::error::{Error, Result};

const FORMAT: &str = "rnn-case/1";
/// The largest size a case may state, so that no product of two sizes and a gate count can
/// overflow.
const MAX_SIZE: usize = 1 << 24;
/// What a case may name as an activation, and which of the parameters alpha and beta it has.
const ACTIVATIONS: [(&str, &[&str]); 11] = [
    ("sigmoid", &[]),
    ("tanh", &[]),
    ("relu", &[]),
    ("affine", &["alpha", "beta"]),
    ("softsign", &[]),
    ("softplus", &[]),
    ("elu", &["alpha"]),
    ("hardsigmoid", &["alpha", "beta"]),
    ("leakyrelu", &["alpha"]),
    ("thresholdedrelu", &["alpha"]),
    ("scaledtanh", &["alpha", "beta"]),
];
const FIELDS: [&str; 14] = [
    "format",
    "cell",
    "input_size",
    "hidden_size",
    "num_layers",
    "proj_size",
    "bidirectional",
    "bias",
    "peephole",
    "coupled",
    "gru_reset",
    "clip",
    "cell_clip",
    "activations",
];
/// Fields that a file may leave out, as those do that were written before there were any.
const OPTIONAL_FIELDS: [&str; 3] = ["alpha", "beta", "burn_in"];

/// Reads the case at `path` and checks it against its own description.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be read; [`Error::Format`], naming the field or tensor, if a
/// metadata field is missing, unknown or out of range, or a tensor is missing, surplus, or of
/// another shape or element type than the layer asks for.
pub fn load(path: &Path) -> Result<Case> {
    let reader = safetensors::Reader::open(path)?;
    // Another kind of file may be large.
    let format = Fields(reader.metadata()).one_of("format", &[(FORMAT, ())]);
    format.map_err(|reason| Error::format(path, reason))?;
    let archive = reader.read()?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    read(&name, archive).map_err(|reason| Error::format(path, reason))
}

pub(super) fn read(name: &str, archive: Archive) -> Result<Case, String> {
    let Archive { tensors, metadata } = archive;
    let fields = Fields(&metadata);
    fields.one_of("format", &[(FORMAT, ())])?;
    let known = |key: &str| FIELDS.contains(&key) || OPTIONAL_FIELDS.contains(&key);
    if let Some(key) = metadata.keys().find(|key| !known(key)) {
        // An option that this reader does not know would change the results.
        return Err(format!("metadata {key:?} is not a field of {FORMAT}"));
    }
    let cell = fields.one_of(
        "cell",
        &[
            ("rnn_tanh", CaseCell::RnnTanh),
            ("rnn_relu", CaseCell::RnnRelu),
            ("lstm", CaseCell::Lstm),
            ("gru", CaseCell::Gru),
        ],
    )?;
    let &[steps, batch, _] = tensors
        .get("x")
        .ok_or("tensor \"x\" is missing")?
        .shape
        .as_slice()
    else {
        return Err("tensor \"x\": shape must be [T, N, I]".to_owned());
    };
    let activations = fields.activations(cell.own_activations().len())?;
    let mut used: Vec<_> = activations.iter().map(String::as_str).collect();
    if used.is_empty() {
        used = cell.own_activations().to_vec();
    }
    let case = Case {
        name: name.to_owned(),
        cell,
        steps,
        batch,
        input_size: fields.size("input_size", 1)?,
        hidden_size: fields.size("hidden_size", 1)?,
        num_layers: fields.size("num_layers", 1)?,
        proj_size: fields.size("proj_size", 0)?,
        bidirectional: fields.flag("bidirectional")?,
        bias: fields.flag("bias")?,
        peephole: fields.flag("peephole")?,
        coupled: fields.flag("coupled")?,
        reset_after: fields.one_of("gru_reset", &[("after", true), ("before", false)])?,
        clip: fields.bound("clip")?,
        cell_clip: fields.bound("cell_clip")?,
        alpha: fields.parameters("alpha", &used)?,
        beta: fields.parameters("beta", &used)?,
        activations,
        burn_in: fields.burn_in(steps)?,
        tensors,
    };
    let of_lstm = [
        ("proj_size", case.proj_size > 0),
        ("peephole", case.peephole),
        ("coupled", case.coupled),
        ("cell_clip", case.cell_clip.is_some()),
    ];
    match of_lstm.into_iter().find(|&(_, used)| used) {
        Some((key, _)) if cell != CaseCell::Lstm => {
            return Err(format!("metadata {key:?} is for lstm only"));
        }
        _ => {}
    }
    if case.burn_in > 0 && case.bidirectional {
        return Err("metadata \"burn_in\" is for one direction only".to_owned());
    }
    case.check_tensors()?;
    Ok(case)
}

/// The metadata of a case.
struct Fields<'a>(&'a BTreeMap<String, String>);

impl Fields<'_> {
    fn get(&self, key: &str) -> Result<&str, String> {
        let value = self.0.get(key);
        value.map_or_else(
            || Err(format!("metadata {key:?} is missing")),
            |value| Ok(value.as_str()),
        )
    }

    fn one_of<T: Copy>(&self, key: &str, allowed: &[(&str, T)]) -> Result<T, String> {
        let got = self.get(key)?;
        let found = allowed.iter().find(|(text, _)| *text == got);
        found.map(|&(_, value)| value).ok_or_else(|| {
            let texts: Vec<_> = allowed.iter().map(|(text, _)| *text).collect();
            invalid(key, &texts.join(" or "), got)
        })
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        self.one_of(key, &[("true", true), ("false", false)])
    }

    fn size(&self, key: &str, least: usize) -> Result<usize, String> {
        let got = self.get(key)?;
        let size = got.parse().ok();
        size.filter(|size| (least..=MAX_SIZE).contains(size))
            .ok_or_else(|| invalid(key, &format!("a number from {least} to {MAX_SIZE}"), got))
    }

    fn bound(&self, key: &str) -> Result<Option<f64>, String> {
        let got = self.get(key)?;
        if got.is_empty() {
            return Ok(None);
        }
        let bound = got.parse::<f64>().ok();
        let bound = bound.filter(|bound| bound.is_finite() && *bound > 0.0);
        bound.map_or_else(
            || Err(invalid(key, "empty or a positive number", got)),
            |bound| Ok(Some(bound)),
        )
    }

    fn activations(&self, count: usize) -> Result<Vec<String>, String> {
        let got = self.get("activations")?;
        if got.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = got.split(',').map(str::to_owned).collect();
        let known = ACTIVATIONS.map(|(name, _)| name);
        if names.len() != count || !names.iter().all(|name| known.contains(&name.as_str())) {
            let expected = format!("empty or {count} of {}", known.join(", "));
            return Err(invalid("activations", &expected, got));
        }
        Ok(names)
    }

    /// The parameter called `key` of each of `activations`, or nothing if none is given.
    fn parameters(&self, key: &str, activations: &[&str]) -> Result<Vec<Option<f64>>, String> {
        let got = self.0.get(key).map_or("", String::as_str);
        if got.is_empty() {
            return Ok(Vec::new());
        }
        let count = activations.len();
        let expected = format!("empty or {count} of a number or nothing, separated by commas");
        let refused = || invalid(key, &expected, got);
        let texts: Vec<_> = got.split(',').collect();
        if texts.len() != count {
            return Err(refused());
        }
        let parse = |(text, activation): (&str, &&str)| {
            if text.is_empty() {
                return Ok(None);
            }
            if !has_parameter(activation, key) {
                return Err(format!(
                    "metadata {key:?}: {activation} has none, got {got:?}"
                ));
            }
            let value = text.parse().ok().filter(|value: &f64| value.is_finite());
            value.map(Some).ok_or_else(refused)
        };
        texts.into_iter().zip(activations).map(parse).collect()
    }

    fn burn_in(&self, steps: usize) -> Result<usize, String> {
        let Some(got) = self.0.get("burn_in") else {
            return Ok(0);
        };
        let burn_in = got.parse().ok().filter(|&burn_in| burn_in <= steps);
        burn_in.ok_or_else(|| invalid("burn_in", &format!("a number from 0 to {steps}"), got))
    }
}

fn has_parameter(activation: &str, key: &str) -> bool {
    let known = ACTIVATIONS.iter().find(|(name, _)| *name == activation);
    known.is_some_and(|(_, parameters)| parameters.contains(&key))
}

fn invalid(key: &str, expected: &str, got: &str) -> String {
    format!("metadata {key:?} must be {expected}, got {got:?}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{archive, refusal};
    use super::*;

    /// The case after a change of its metadata.
    fn with(name: &str, fields: &[(&str, &str)]) -> Case {
        let mut archive = archive(name);
        for &(key, value) in fields {
            archive.metadata.insert(key.to_owned(), value.to_owned());
        }
        read("a", archive).unwrap()
    }

    /// What reading says of a case after a change of its metadata.
    fn refused(name: &str, fields: &[(&str, &str)]) -> String {
        refusal(name, |archive| {
            for &(key, value) in fields {
                archive.metadata.insert(key.to_owned(), value.to_owned());
            }
        })
    }

    #[test]
    fn options_are_read() {
        let case = read("a", archive("lstm_peephole_proj_clip")).unwrap();
        assert_eq!(case.cell, CaseCell::Lstm);
        let sizes = (case.input_size, case.hidden_size, case.num_layers);
        assert_eq!((case.steps, case.batch, sizes), (5, 3, (4, 6, 1)));
        assert_eq!((case.proj_size, case.output_size()), (4, 4));
        assert!(case.peephole && case.bias && !case.bidirectional && !case.coupled);
        assert_eq!((case.clip, case.cell_clip), (Some(0.8), None));
        assert!(case.activations.is_empty());
        assert_eq!((case.lengths(), case.resets()), (None, None));

        let case = read("a", archive("gru_before_nobias")).unwrap();
        assert!(case.cell == CaseCell::Gru && !case.reset_after && !case.bias);
        assert!(read("a", archive("gru_basic")).unwrap().reset_after);
        assert!(read("a", archive("lstm_coupled")).unwrap().coupled);
        let case = read("a", archive("lstm_cell_clip")).unwrap();
        assert_eq!(case.cell_clip, Some(0.4));
        let case = read("a", archive("gru_activations")).unwrap();
        assert_eq!(case.activations, ["hardsigmoid", "softsign"]);
        let case = read("a", archive("rnn_relu_basic")).unwrap();
        assert_eq!(case.cell, CaseCell::RnnRelu);
        let case = read("a", archive("rnn_activation_elu")).unwrap();
        assert_eq!(case.cell, CaseCell::RnnTanh);
        let case = read("a", archive("lstm_lengths_unsorted_bi")).unwrap();
        assert_eq!(case.lengths(), Some(&[2, 7, 1, 4, 7][..]));
        let case = read("a", archive("rnn_resets")).unwrap();
        assert_eq!(case.resets().map(<[u8]>::len), Some(9 * 4));
    }

    #[test]
    fn activations_have_parameters() {
        let case = read("a", archive("gru_activations")).unwrap();
        assert!(case.alpha.is_empty() && case.beta.is_empty());
        let parameters = |activations, alpha, beta| {
            let fields = [
                ("activations", activations),
                ("alpha", alpha),
                ("beta", beta),
            ];
            let case = with("lstm_basic", &fields);
            (case.alpha, case.beta)
        };
        assert_eq!(
            parameters("affine,scaledtanh,elu", "0.5,,2", ",-1e-3,"),
            (
                vec![Some(0.5), None, Some(2.0)],
                vec![None, Some(-1e-3), None]
            )
        );
        assert_eq!(
            parameters("hardsigmoid,leakyrelu,thresholdedrelu", ".25,0,1.5", ""),
            (vec![Some(0.25), Some(0.0), Some(1.5)], vec![])
        );
        assert_eq!(parameters("", ",,", ""), (vec![None; 3], vec![]));
        assert_eq!(
            with("rnn_activation_elu", &[("alpha", "-2")]).alpha,
            [Some(-2.0)]
        );
    }

    #[test]
    fn parameters_that_no_activation_has_are_refused() {
        for activation in ["sigmoid", "tanh", "relu", "softsign", "softplus"] {
            for key in ["alpha", "beta"] {
                let fields = [("activations", activation), (key, "1")];
                assert_eq!(
                    refused("rnn_tanh_basic", &fields),
                    format!("metadata {key:?}: {activation} has none, got \"1\"")
                );
            }
        }
        for activation in ["elu", "leakyrelu", "thresholdedrelu"] {
            let reason = refused(
                "rnn_tanh_basic",
                &[("activations", activation), ("beta", "1")],
            );
            assert!(reason.contains("has none"), "{reason}");
        }
        let reason = refused("lstm_basic", &[("alpha", ",,1")]);
        assert!(reason.contains("tanh has none"), "{reason}");
    }

    #[test]
    fn bad_parameters_are_refused_by_name() {
        for value in [
            "1", "1,2", "1,2,3,4", "x,,", "nan,,", ",inf,", ",-inf,", ",1e999,", " ,,", "1;2;3",
        ] {
            for key in ["alpha", "beta"] {
                let activations = ("activations", "affine,scaledtanh,hardsigmoid");
                let reason = refused("lstm_basic", &[activations, (key, value)]);
                assert!(
                    reason.starts_with(&format!("metadata {key:?} must be empty or 3")),
                    "{reason}"
                );
                assert!(reason.ends_with(&format!("got {value:?}")), "{reason}");
            }
        }
    }

    #[test]
    fn burn_in_is_part_of_one_direction() {
        assert_eq!(with("lstm_basic", &[]).burn_in, 0);
        assert_eq!(with("lstm_basic", &[("burn_in", "2")]).burn_in, 2);
        let all = with("lstm_basic", &[("burn_in", "5")]);
        assert_eq!(all.burn_in, all.steps);
        assert_eq!(with("lstm_bi", &[("burn_in", "0")]).burn_in, 0);
        assert_eq!(
            refused("lstm_bi", &[("burn_in", "1")]),
            "metadata \"burn_in\" is for one direction only"
        );
    }

    #[test]
    fn every_metadata_field_is_needed_and_no_other() {
        for key in FIELDS {
            let reason = refusal("gru_basic", |a| drop(a.metadata.remove(key)));
            assert_eq!(reason, format!("metadata {key:?} is missing"));
        }
        let reason = refused("gru_basic", &[("dropout", "1")]);
        assert!(reason.contains("\"dropout\" is not a field"), "{reason}");
    }

    #[test]
    fn bad_metadata_are_refused_by_name() {
        for (key, value) in [
            ("format", "rnn-case/2"),
            ("cell", "LSTM"),
            ("input_size", "0"),
            ("hidden_size", "-1"),
            ("hidden_size", "18446744073709551615"),
            ("num_layers", ""),
            ("num_layers", "0"),
            ("proj_size", "x"),
            ("bidirectional", "True"),
            ("bias", "1"),
            ("peephole", ""),
            ("coupled", "no"),
            ("gru_reset", "middle"),
            ("clip", "0"),
            ("clip", "inf"),
            ("cell_clip", "nan"),
            ("cell_clip", "-1"),
            ("activations", "tanh"),
            ("activations", "sigmoid,tanh,swish"),
            ("burn_in", ""),
            ("burn_in", "-1"),
            ("burn_in", "6"),
            ("burn_in", "1.0"),
        ] {
            let reason = refused("lstm_basic", &[(key, value)]);
            assert!(
                reason.starts_with(&format!("metadata {key:?} must be")),
                "{reason}"
            );
            assert!(reason.ends_with(&format!("got {value:?}")), "{reason}");
        }
    }

    #[test]
    fn what_only_an_lstm_has_is_refused_for_others() {
        for (key, value) in [
            ("proj_size", "3"),
            ("peephole", "true"),
            ("coupled", "true"),
            ("cell_clip", "1.5"),
        ] {
            let reason = refused("gru_basic", &[(key, value)]);
            assert_eq!(reason, format!("metadata {key:?} is for lstm only"));
        }
    }

    #[test]
    fn a_false_number_of_layers_costs_nothing() {
        let reason = refused("lstm_basic", &[("num_layers", &MAX_SIZE.to_string())]);
        assert!(reason.contains("\"h0\": shape"), "{reason}");
    }
}
